"""People's recordings as if they were acted in a feeling, and how they sound then, in figures.

People who read are calm, so what learns from them alone tells every person as NEUTRAL; made voices
are told from people by more than their feelings. Here the same people speak in each way: pitch,
its range, rate, level, brightness, breath and unrest are changed by WORLD (Morise et al. 2016) to
what studies of acted speech report (Juslin and Laukka 2003, Scherer 2003), and NEUTRAL goes the
same way. DISGUST has no way of its own that all agree on, and is left out.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from common_utils.small_model.waves import RATE_HZ, utterances
from common_utils.tiny_world import effects
from common_utils.tiny_world.voices import Wave
from osum_echat import audio
from osum_echat.records import Labels

FRAME_MS = 5.0
LOWEST_HZ, HIGHEST_HZ = 60.0, 700.0
SECONDS, LEVELS_DB = (1.3, 4.2), (-38.0, -16.0)     # of a clip, before the gain of its feeling
LEAST_VOICED = 15                                   # frames
WAYS = 3                                            # in which a clip is spoken, beside as it is
ROOM, NOISE, MICROPHONE = 0.3, 0.35, 0.3            # shares of clips
NOISE_DB, TILTS_DB = (5.0, 25.0), (-2.5, 2.5)
Bounds = tuple[float, float]
Analysis = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Acting:
    """How a feeling changes a voice, each drawn between two bounds."""

    pitch: Bounds                   # semitones
    range: Bounds                   # times that of the pitch
    rate: Bounds                    # times
    gain_db: Bounds
    tilt_db: Bounds                 # an octave above 500 Hz
    contrast: Bounds = (1.0, 1.0)   # power of the level over time
    final: Bounds = (0.0, 0.0)      # semitones, by which the pitch has moved at the end
    breath: Bounds = (0.0, 0.0)     # share of the voice that becomes noise
    tremor: Bounds = (0.0, 0.0)     # semitones, 5 to 8 times a second
    jitter: Bounds = (0.0, 0.0)     # semitones, from frame to frame


ACTING = {
    "NEUTRAL": Acting((-1.5, 1.5), (0.65, 1.15), (0.85, 1.1), (-4, 2), (-1, 0.7)),
    "HAPPY": Acting((1.5, 6), (1.3, 2.2), (0.95, 1.2), (2, 9), (0, 2), (1, 1.2)),
    "SAD": Acting((-3, 2.5), (0.4, 0.95), (0.68, 0.95), (-9, 0), (-2.5, -0.4), (0.75, 1),
                  final=(-3, 0), breath=(0, 0.35), tremor=(0, 0.5)),
    "ANGER": Acting((0.5, 8), (0.9, 1.7), (0.95, 1.25), (6, 15), (1.3, 3.3), (1.05, 1.4),
                    jitter=(0, 0.35)),
    "FEAR": Acting((5, 11), (0.6, 1.3), (1, 1.3), (0, 9), (-0.7, 1.2), breath=(0.05, 0.4),
                   tremor=(0.15, 0.8), jitter=(0, 0.4)),
    "SURPRISE": Acting((3.5, 9), (1.5, 2.5), (0.88, 1.1), (1, 8), (0, 1.5), (0.95, 1.2),
                       final=(1, 6)),
}  # fmt: skip
DRAWN = (*ACTING, "HAPPY")                          # the commonest


def pitch_of(wave: Wave) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(samples,) at 16 kHz -> Hz of each 5 ms, 0 where there is no voice; and their seconds."""
    import pyworld

    samples = wave.astype(np.float64)
    hertz, seconds = pyworld.dio(samples, RATE_HZ, LOWEST_HZ, HIGHEST_HZ, frame_period=FRAME_MS)
    return pyworld.stonemask(samples, hertz, seconds, RATE_HZ), seconds


def analysed(wave: Wave) -> Analysis:
    """(samples,) at 16 kHz -> pitch (frames,), envelope and aperiodicity (frames, bins)."""
    import pyworld

    samples, (hertz, seconds) = wave.astype(np.float64), pitch_of(wave)
    return (hertz, pyworld.cheaptrick(samples, hertz, seconds, RATE_HZ),
            pyworld.d4c(samples, hertz, seconds, RATE_HZ))  # fmt: skip


def acted(parts: Analysis, acting: Acting, rng: Generator) -> Wave:
    """The analysed recording spoken in another way: (samples,) at 16 kHz."""
    import pyworld

    hertz, envelope, noise = parts
    one = {name: rng.uniform(*getattr(acting, name)) for name in Acting.__dataclass_fields__}
    frames, voiced = len(hertz), hertz > 0
    tones = 12 * np.log2(np.where(voiced, hertz, 1.0))
    middle = np.median(tones[voiced])
    tones = middle + one["pitch"] + one["range"] * (tones - middle)
    unrest = np.sin(2 * np.pi * (rng.uniform(5, 8) * np.arange(frames) * FRAME_MS / 1000
                                 + rng.random()))  # fmt: skip
    tones += one["tremor"] * unrest + one["jitter"] * rng.standard_normal(frames)
    tones += one["final"] * np.clip(np.linspace(-2, 1, frames), 0, 1) ** 1.5
    hertz = np.where(voiced, np.clip(2 ** (tones / 12), LOWEST_HZ, HIGHEST_HZ), 0.0)
    octaves = effects.tilt_octaves(np.linspace(0, RATE_HZ / 2, envelope.shape[1]))
    level = envelope.sum(1)
    swell = np.clip(level / np.percentile(level, 90), 1e-5, 3) ** (one["contrast"] - 1)
    envelope = envelope * 10 ** (one["tilt_db"] * octaves / 10) * swell[:, None]
    noise = noise + (1 - noise) * one["breath"] * np.clip(octaves / 2, 0, 1)
    places = np.arange(0, frames - 1, one["rate"]).astype(int)
    wave = pyworld.synthesize(hertz[places], np.ascontiguousarray(envelope[places]),
                              np.ascontiguousarray(noise[places].clip(0.001, 1)), RATE_HZ,
                              FRAME_MS)  # fmt: skip
    level_db = rng.uniform(*LEVELS_DB) + one["gain_db"]
    return effects.limited(effects.at_level(wave.astype(np.float32), level_db))


def prosody(wave: Wave) -> NDArray[np.float32] | None:
    """How (samples,) at 16 kHz sound, in ten figures; None where there is hardly any voice.

    Pitch in semitones: middle, range, its move at the end, from frame to frame, and unrest; share
    of voice; level in dB: mean, deviation; brightness in dB: above 1 kHz, and above 4 kHz.
    """
    hertz, _ = pitch_of(wave)
    voiced = hertz > 0
    if voiced.sum() < LEAST_VOICED:
        return None
    tones = 12 * np.log2(hertz[voiced] / 100)
    levels = 20 * np.log10(effects.frame_rms(wave) + 1e-7)
    loud = levels > np.percentile(levels, 95) - 30
    low, middle, high = np.percentile(tones, (10, 50, 90))
    tail, steps = len(tones) // 4, np.abs(np.diff(tones))
    power = np.abs(np.fft.rfft(wave)) ** 2
    bins = np.linspace(0, RATE_HZ / 2, len(power))
    base, bright, hiss = (
        10 * np.log10(power[(bins >= start) & (bins < end)].mean() + 1e-12)
        for start, end in ((100, 1000), (1000, 4000), (4000, 7500))
    )
    return np.array([
        middle, high - low, np.median(tones[-tail:]) - np.median(tones[:-tail]),
        steps[steps < 4].mean() * 5, min(float(np.median(np.abs(np.diff(tones, 2)))), 1.0),
        voiced.mean() / loud.mean(), levels[loud].mean(), levels[loud].std(), bright - base,
        hiss - base,
    ], np.float32)  # fmt: skip


def elsewhere(wave: Wave, rng: Generator) -> Wave:
    """Now and then in a room, beside a noise, through another microphone; as loud as before."""
    if rng.random() < ROOM:
        wave = effects.room(wave, rng)
    if rng.random() < NOISE:
        names = sorted(effects.NOISES)
        level = effects.speech_level(wave) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
        wave = wave + effects.noise(names[rng.integers(len(names))], len(wave), level, rng)
    if rng.random() < MICROPHONE:
        wave = effects.tilted(wave, rng.uniform(*TILTS_DB))
    return effects.limited(wave)


def spoken(path: Path, most: int, seed: int = 0) -> Iterator[tuple[Tensor, Labels, Tensor]]:
    """Of so many clips of a list: each as it is, and acted in some ways.

    Gives (samples,) at 16 kHz, labels, and figures: `prosody`, and the pitch of the clip as it is,
    NaN where this is it.
    """
    rng, every = np.random.default_rng(seed), list(utterances(path))
    for one in random.Random(seed).sample(every, min(most, len(every))):
        assert one.user.audio is not None, "a recording has sound"
        wave = effects.trimmed(audio.load(one.user.audio).numpy())
        length = round(rng.uniform(*SECONDS) * RATE_HZ)
        first = int(rng.integers(max(1, len(wave) - length)))
        wave = wave[first : first + length]
        own = prosody(wave) if len(wave) > RATE_HZ / 2 else None
        if own is None:
            continue
        parts = analysed(wave)
        for way in (None, "NEUTRAL", *rng.choice(DRAWN, WAYS, replace=False)):
            if way is None:
                made = effects.limited(effects.at_level(wave, rng.uniform(*LEVELS_DB)))
            else:
                made = acted(parts, ACTING[way], rng)
            figures = prosody(made)
            if figures is not None:
                labels = Labels(one.labels.age, one.labels.gender, str(way or "NEUTRAL"))
                heard = torch.from_numpy(elsewhere(made, rng).astype(np.float32))
                pitch = float("nan") if way is None else float(own[0])
                yield heard, labels, torch.tensor([*figures, pitch])
