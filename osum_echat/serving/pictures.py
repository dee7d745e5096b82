"""Sound as pictures: how loud it is over time, and its log-mel spectrogram."""

import base64
import io
from itertools import pairwise

import numpy as np
from torch import Tensor

from osum_echat import audio

BARS = 96
WIDEST = 640                    # pixels of a spectrogram: longer ones are averaged over time
# From quiet to loud; evenly spaced, blended between.
SCALE = ((9, 13, 35), (47, 26, 94), (122, 34, 109), (200, 62, 77), (246, 142, 53), (252, 240, 190))


def bars(samples: Tensor, count: int = BARS) -> list[float]:
    """The loudest sample of each of `count` equal parts: 0 to 1, the loudest part of all is 1.

    samples: (samples,).
    """
    levels = samples.abs().numpy()
    edges = np.linspace(0, len(levels), count + 1).astype(int)
    heights = [float(levels[a:b].max()) if b > a else 0.0 for a, b in pairwise(edges)]
    top = max(heights, default=0.0) or 1.0
    return [round(height / top, 3) for height in heights]


def spectrogram(samples: Tensor, rate_hz: int) -> str | None:
    """The log-mel features of (samples,) as a PNG, low tones below, in a data: address.

    None for less than a window (25 ms).
    """
    samples = audio.resample(samples, rate_hz, audio.SAMPLE_RATE_HZ)
    if len(samples) < audio.WINDOW_SAMPLES:
        return None
    return _address(_colours(audio.log_mel(samples).numpy()))


def _colours(mel: np.ndarray) -> np.ndarray:
    """(frames, mels) -> (mels, at most WIDEST, 3) uint8."""
    if len(mel) > WIDEST:
        edges = np.linspace(0, len(mel), WIDEST + 1).astype(int)
        mel = np.stack([mel[a:b].mean(0) for a, b in pairwise(edges)])
    low, high = float(mel.min()), float(mel.max())
    place = (mel.T[::-1] - low) / max(high - low, 1e-6)
    stops = np.linspace(0.0, 1.0, len(SCALE))
    channels = [np.interp(place, stops, [colour[one] for colour in SCALE]) for one in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def _address(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
