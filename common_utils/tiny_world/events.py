"""Sounds that people make between words: laughing, coughing, sighing and crying.

All are made for one speaker: at that voice's pitch and with its resonances. 16 kHz, level 1.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.tiny_world.effects import SAMPLE_RATE_HZ, at_level, shaped
from common_utils.tiny_world.voices import Voice, Wave

Floats = NDArray[np.float64]

OPEN_HZ = (750.0, 1250.0, 2600.0, 3600.0)       # the vowel of a laugh
MIDDLE_HZ = (560.0, 1350.0, 2500.0, 3500.0)     # that of a sob and of a cough
BANDWIDTHS_HZ = (90.0, 120.0, 200.0, 300.0)


def _samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE_HZ)


def _silence(seconds: float) -> Wave:
    return np.zeros(_samples(seconds), np.float32)


def _tract(source: Floats, formants_hz: Sequence[float], scale: float, widen: float = 1.0) -> Wave:
    """`source` (samples,) through resonances, scaled for the speaker's size."""
    def gain(hertz: Floats) -> Floats:
        total = np.ones(len(hertz), np.complex128)
        for centre, width in zip(formants_hz, BANDWIDTHS_HZ, strict=True):
            middle, band = centre * scale, width * scale * widen
            total *= middle**2 / (middle**2 - hertz**2 + 1j * hertz * band)
        return np.abs(total)

    return shaped(source.astype(np.float32), gain)


def _pulses(f0_hz: Floats) -> Floats:
    """A glottal buzz of the given pitch, (samples,): a saw tooth without its jump's harshness."""
    phase = np.cumsum(f0_hz) / SAMPLE_RATE_HZ % 1.0
    return np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) ** 2, 0.0) - 0.3


def _swell(length: int, rise_s: float, fall_s: float) -> Floats:
    """An envelope that rises, stays and falls: (samples,)."""
    time_s = np.arange(length) / SAMPLE_RATE_HZ
    left = np.clip(time_s / rise_s, 0, 1)
    right = np.clip((length / SAMPLE_RATE_HZ - time_s) / fall_s, 0, 1)
    return np.sin(np.pi / 2 * np.minimum(left, right)) ** 2


def laugh(voice: Voice, rng: Generator) -> Wave:
    """Ha-ha-ha: 4 to 6 short voiced bursts at an even beat, each after a puff, falling."""
    beat_s, count = rng.uniform(0.17, 0.21), int(rng.integers(4, 7))
    start, end = rng.uniform(1.5, 1.7), rng.uniform(1.05, 1.2)
    parts: list[Wave] = []
    for index in range(count):
        fall = index / (count - 1)
        length = _samples(beat_s * 0.62)
        pitch = voice.f0_hz * start * (end / start) ** fall * np.linspace(1.06, 0.92, length)
        burst = _tract(_pulses(pitch), OPEN_HZ, voice.formants) * _swell(length, 0.02, 0.04)
        puff_length = _samples(beat_s * 0.38)
        puff = _tract(rng.standard_normal(puff_length), OPEN_HZ, voice.formants, 3.0)
        puff = at_level(puff, -12.0) * _swell(puff_length, 0.02, 0.02)
        parts += [puff, at_level(burst, 0.0) * (1 - 0.45 * fall)]
    return np.concatenate(parts).astype(np.float32)


def cough(voice: Voice, rng: Generator) -> Wave:
    """2 or 3 explosive bursts of noise, each with a weaker, partly voiced tail."""
    parts: list[Wave] = []
    for _ in range(int(rng.integers(2, 4))):
        length = _samples(rng.uniform(0.24, 0.32))
        time_s = np.arange(length) / SAMPLE_RATE_HZ
        blast = np.exp(-time_s / 0.035) * np.clip(time_s / 0.004, 0, 1)
        tail = 0.35 * _swell(length, 0.10, 0.12)
        hiss = _tract(rng.standard_normal(length), MIDDLE_HZ, voice.formants, 4.0)
        buzz = _tract(_pulses(voice.f0_hz * np.linspace(1.0, 0.75, length)), MIDDLE_HZ,
                      voice.formants)
        body = at_level(hiss, 0.0) * (blast + tail) + at_level(buzz, -8.0) * tail
        parts += [body * 2.0, _silence(rng.uniform(0.04, 0.10))]
    return np.concatenate(parts).astype(np.float32)


def sigh(voice: Voice, rng: Generator) -> Wave:
    """A breath in, and a long breath out that darkens and sinks away."""
    inward, outward = _samples(rng.uniform(0.25, 0.4)), _samples(rng.uniform(0.8, 1.1))
    bright = tuple(1.5 * hertz for hertz in MIDDLE_HZ)
    take = at_level(_tract(rng.standard_normal(inward), bright, voice.formants, 4.0), -9.0)
    take = take * _swell(inward, 0.2, 0.08)
    white, fade = rng.standard_normal(outward), np.linspace(0, 1, outward)
    high = at_level(_tract(white, OPEN_HZ, voice.formants * 1.3, 3.0), 0.0)
    low = at_level(_tract(white, MIDDLE_HZ, voice.formants * 0.7, 3.0), 0.0)
    moan = _tract(_pulses(voice.f0_hz * (0.95 - 0.25 * fade)), MIDDLE_HZ, voice.formants)
    give = high * (1 - fade) + low * fade + at_level(moan, -7.0) * np.clip(1 - 1.5 * fade, 0, 1)
    give = give * _swell(outward, 0.12, 0.7)
    return np.concatenate((take, _silence(0.05), give)).astype(np.float32)


def cry(voice: Voice, rng: Generator) -> Wave:
    """2 or 3 trembling, falling sobs, each followed by two quick sniffs."""
    parts: list[Wave] = []
    for index in range(int(rng.integers(2, 4))):
        length = _samples(rng.uniform(0.32, 0.45))
        time_s = np.arange(length) / SAMPLE_RATE_HZ
        tremble = np.sin(2 * np.pi * rng.uniform(8, 10) * time_s)
        pitch = voice.f0_hz * np.linspace(1.75, 1.15, length) * (1 + 0.07 * tremble)
        sob = at_level(_tract(_pulses(pitch), MIDDLE_HZ, voice.formants), 0.0)
        sob = sob * (1 + 0.5 * tremble) * _swell(length, 0.04, 0.2)
        parts.append(sob * (1 - 0.15 * index))
        for _ in range(2):
            sniff_length = _samples(rng.uniform(0.07, 0.10))
            sniff = shaped(rng.standard_normal(sniff_length).astype(np.float32),
                           lambda hertz: np.exp(-(((hertz - 3800) / 1500) ** 2)))
            parts.append(_silence(0.05))
            parts.append(at_level(sniff, -5.0) * _swell(sniff_length, 0.05, 0.02))
        parts.append(_silence(0.06))
    return np.concatenate(parts).astype(np.float32)


# Name -> how it is made and its level against that of plain speech in decibels.
EVENTS: dict[str, tuple[Callable[[Voice, Generator], Wave], float]] = {
    "LAUGH": (laugh, 0.0), "COUGH": (cough, 2.0), "SIGH": (sigh, -5.0), "CRY": (cry, 0.0),
}
