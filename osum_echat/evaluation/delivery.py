"""How something was said: pitch, its range, rate and level, measured from the samples alone."""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

RATE_HZ = 16_000
FRAME_SAMPLES = 640                     # 40 ms
HOP_SAMPLES = 160                       # 10 ms
PITCH_RANGE_HZ = (60, 420)
VOICED_FROM = 0.5                       # height of the autocorrelation peak
GOOD_PEAK = 0.9                         # of the highest
ACTIVE_RANGE_DB = 35.0                  # below the loudest frame: pauses
FARTHEST_SEMITONES = 9.0                # from the median: farther ones are slips by an octave
LETTERS_PER_HANZI = 3                   # about as long to say as a syllable of English
_LETTER = re.compile(r"[^\W\d_]")
_HANZI = re.compile(r"[\u4e00-\u9fff]")
_TAG = re.compile(r"<[^<>]*>")


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one utterance; nan where nothing is voiced."""

    pitch_hz: float                     # median over voiced frames
    letters_per_s: float                # over the frames that are not pauses
    level_db: float                     # of the same frames
    range_semitones: float              # from the 10th to the 90th percentile of pitch


def delivery(samples: np.ndarray, text: str) -> Delivery:
    """Measure pitch, rate and level. samples: (samples,) at 16 kHz; text: what is said."""
    if len(samples) < FRAME_SAMPLES:
        samples = np.pad(samples, (0, FRAME_SAMPLES - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::HOP_SAMPLES]
    power = np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12
    active = power > power.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
    active_s = active.sum() * HOP_SAMPLES / RATE_HZ
    pitches = _pitches(frames[active])
    pitch = float(np.median(pitches)) if len(pitches) else float("nan")
    return Delivery(
        pitch_hz=pitch,
        letters_per_s=letters(text) / active_s,
        level_db=float(10 * np.log10(power[active].mean())),
        range_semitones=_range(12 * np.log2(pitches / pitch)),
    )


def _range(semitones: np.ndarray) -> float:
    """From the 10th to the 90th percentile; nan for none. semitones: (voiced,) from the median."""
    if not len(semitones):
        return float("nan")
    low, high = np.percentile(semitones[abs(semitones) <= FARTHEST_SEMITONES], (10, 90))
    return float(high - low)


def middle(deliveries: Sequence[Delivery]) -> Delivery:
    """The median of each aspect, over the utterances that have it."""
    rows = np.array([astuple(one) for one in deliveries])
    known = [column[~np.isnan(column)] for column in rows.T]
    return Delivery(*(float(np.median(one)) if len(one) else float("nan") for one in known))


def letters(text: str) -> int:
    """How much there is to say: letters, a Chinese character counted as a syllable; no tags."""
    text = _TAG.sub(" ", text)
    return len(_LETTER.findall(text)) + (LETTERS_PER_HANZI - 1) * len(_HANZI.findall(text))


def _pitches(frames: np.ndarray) -> np.ndarray:
    """(voiced,) pitches in Hz of the voiced ones among (frames, samples)."""
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(FRAME_SAMPLES)
    size = 2 * FRAME_SAMPLES
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(FRAME_SAMPLES), size)) ** 2)
    spread = np.fft.irfft(np.abs(np.fft.rfft(frames, size, axis=1)) ** 2, axis=1)
    shortest, longest = (RATE_HZ // edge for edge in reversed(PITCH_RANGE_HZ))
    peaks = spread[:, shortest:longest] / (spread[:, :1] + 1e-12)
    peaks = peaks * window[0] / window[shortest:longest]
    highest = peaks.max(axis=1, keepdims=True)
    # The shortest period among the good ones: twice the true period fits just as well.
    tops = (peaks >= GOOD_PEAK * highest) & (peaks >= np.roll(peaks, -1, axis=1))
    best = tops.argmax(axis=1)
    return RATE_HZ / (shortest + best[highest[:, 0] > VOICED_FROM])
