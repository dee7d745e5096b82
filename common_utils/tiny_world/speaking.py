"""One spoken turn from words, voice and labels to the samples that a microphone would record.

Sounds that people make between words, laughing, coughing, sighing and crying, are made for one
speaker: at that voice's pitch and with its resonances. 16 kHz, level 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.tiny_world import effects
from common_utils.tiny_world.effects import SAMPLE_RATE_HZ, at_level, shaped
from common_utils.tiny_world.voices import Studio, Voice, Wave
from osum_echat.errors import DataError

Floats = NDArray[np.float64]

OPEN_HZ = (750.0, 1250.0, 2600.0, 3600.0)       # the vowel of a laugh
MIDDLE_HZ = (560.0, 1350.0, 2500.0, 3500.0)     # that of a sob and of a cough
BANDWIDTHS_HZ = (90.0, 120.0, 200.0, 300.0)

NO_EVENT = "OTHER"
EVENT_FOLLOWS_FEELING = 0.4         # of the feeling's gain that an event takes too
EDGE_S = (0.05, 0.3)
BESIDE_EVENT_S = (0.12, 0.25)
GAP_FRAMES = 4                      # 40 ms: a pause between words that an event may fill
PLACES, PLACE_SHARES = ("before", "after", "within"), (0.45, 0.4, 0.15)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """How often there is a room or a noise, and how far speech stands above the noise."""

    room_share: float = 0.4
    noise_share: float = 0.5
    snr_db: tuple[float, float] = (18.0, 40.0)


def speak(
    studio: Studio, text: str, voice: Voice, emotion: str, event: str, rng: Generator,
    surroundings: Surroundings = Surroundings(),
) -> Wave:  # fmt: skip
    """`text` as `voice` says it in this mood, with the event: (samples,) at 16 kHz within 1."""
    if emotion not in effects.DELIVERIES:
        raise DataError(f"emotion {emotion!r}: not one of {', '.join(effects.DELIVERIES)}")
    if event != NO_EVENT and event not in EVENTS:
        raise DataError(f"event {event!r}: not one of {NO_EVENT}, {', '.join(EVENTS)}")
    delivery = effects.DELIVERIES[emotion]
    spoken = studio.say(text, voice, effects.manner_of(delivery, voice, rng))
    wave = effects.render(spoken, voice, delivery, rng)
    sound = None if event == NO_EVENT else made_event(event, voice, delivery.gain_db, rng)
    return staged(wave, sound, rng, surroundings, delivery.pause_s)


def made_event(event: str, voice: Voice, gain_db: float, rng: Generator) -> Wave:
    """One of EVENTS as this voice makes it: (samples,). gain_db: of the feeling it comes with."""
    make, level_db = EVENTS[event]
    level_db += effects.LEVEL_DB + EVENT_FOLLOWS_FEELING * gain_db
    level_db += rng.uniform(-effects.LEVEL_JITTER_DB, effects.LEVEL_JITTER_DB)
    return effects.at_level(make(voice, rng), level_db)


def staged(
    wave: Wave, event: Wave | None, rng: Generator, surroundings: Surroundings = Surroundings(),
    pause_s: float = 0.0,
) -> Wave:  # fmt: skip
    """Spoken words with an event, a silence at both ends, and a room or a noise around them.

    wave, event: (samples,) at 16 kHz; pause_s: before the first word. Returns (samples,) within 1.
    """
    speech_level = effects.speech_level(wave)
    wave = np.concatenate((_silence(pause_s), wave))
    if event is not None:
        wave = placed(wave, event, rng)
    wave = np.concatenate((_silence(rng.uniform(*EDGE_S)), wave, _silence(rng.uniform(*EDGE_S))))
    if rng.random() < surroundings.room_share:
        wave = effects.room(wave, rng)
    if rng.random() < surroundings.noise_share:
        snr_db = rng.uniform(*surroundings.snr_db)
        name = str(rng.choice(list(effects.NOISES)))
        wave = wave + effects.noise(name, len(wave), speech_level / 10 ** (snr_db / 20), rng)
    return effects.limited(wave)


def placed(wave: Wave, event: Wave, rng: Generator) -> Wave:
    """`event` before or after the speech, or in its longest pause if that is long enough."""
    place = rng.choice(PLACES, p=PLACE_SHARES)
    pause = _silence(rng.uniform(*BESIDE_EVENT_S))
    cut = middle_pause(wave) if place == "within" else None
    if cut is not None:
        return np.concatenate((wave[:cut], pause, event, pause, wave[cut:]))
    return np.concatenate((wave, pause, event) if place == "after" else (event, pause, wave))


def middle_pause(wave: Wave) -> int | None:
    """The sample in the midst of the longest pause between the first and the last fifth."""
    levels = effects.frame_rms(wave)
    quiet = levels < effects.QUIET * np.percentile(levels, 90)
    best, run = (0, 0), 0
    for index in range(len(levels) // 5, len(levels) * 4 // 5):
        run = run + 1 if quiet[index] else 0
        best = max(best, (run, index))
    length, last = best
    if length < GAP_FRAMES:
        return None
    return (last + 1 - length // 2) * effects.FRAME_SAMPLES


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
