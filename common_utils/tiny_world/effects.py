"""How feelings, rooms and noises sound: plain functions on (samples,) at 16 kHz unless said.

Feelings differ in rate, pitch, range and loudness (asked of the engine, see Delivery) and in what
is done afterwards: spectral tilt, saturation, a bend of the pitch, loudness in absolute terms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.tiny_world.voices import Manner, Spoken, Voice, Wave

SAMPLE_RATE_HZ = 16_000
LEVEL_DB = -26.0                # of plain speech while it sounds, against full scale
LEVEL_JITTER_DB = 1.5
PEAK = 0.97
FRAME_SAMPLES = 160             # 10 ms
QUIET = 0.08                    # of the loud frames' level: below it nobody speaks
TILT_FROM_HZ = 500.0
TILT_OCTAVES = 3.5
TREMOR_HZ = (4.3, 5.8)
TREMOR_PITCH, TREMOR_LEVEL = 0.04, 0.36
SWING_HZ = (2.6, 3.2)
HIGH_VOICE_HZ = 220.0           # above it a voice has less room for its feelings


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a feeling is spoken. rate, pitch, range: times the voice's plain ones."""

    rate: float = 1.0
    pitch: float = 1.0
    range: float = 1.0
    gain_db: float = 0.0
    tilt_db: float = 0.0        # an octave above 500 Hz
    drive: float = 0.0          # saturation: how far above the bend the loud parts are pushed
    bend: float = 1.0           # the pitch at the end against that before the last third
    swing: float = 0.0          # depth of a sing-song of the pitch, three times a second
    pause_s: float = 0.0        # before the first word


DELIVERIES = {
    "NEUTRAL": Delivery(),
    "HAPPY": Delivery(rate=1.15, pitch=1.24, range=1.5, gain_db=4.0, tilt_db=1.5, swing=0.05),
    "SAD": Delivery(rate=0.74, pitch=0.86, range=0.3, gain_db=-8.0, tilt_db=-1.8, bend=0.9),
    "ANGER": Delivery(rate=1.15, pitch=1.02, range=0.9, gain_db=8.0, tilt_db=1.8, drive=1.8),
    "SURPRISE": Delivery(
        rate=0.98, pitch=1.42, range=2.0, gain_db=3.0, bend=1.35, pause_s=0.3
    ),
}


def manner_of(delivery: Delivery, voice: Voice, rng: Generator) -> Manner:
    """What the engine is asked for, a little different each time."""
    room_left = min(1.0, HIGH_VOICE_HZ / voice.f0_hz)
    return Manner(
        rate=delivery.rate * rng.uniform(0.96, 1.04),
        pitch=delivery.pitch**room_left * rng.uniform(0.97, 1.03),
        range=delivery.range * rng.uniform(0.9, 1.1),
    )


def render(spoken: Spoken, voice: Voice, delivery: Delivery, rng: Generator) -> Wave:
    """The engine's speech with this voice's body and this feeling, at its absolute level."""
    raw = trimmed(spoken.samples)
    bent = warp(raw, pitch_curve(len(raw), spoken.rate_hz, voice, delivery, rng))
    wave = soxr.resample(bent, spoken.rate_hz * spoken.speed, SAMPLE_RATE_HZ)
    wave = at_level(wave, 0.0)
    if delivery.drive:
        wave = harsh(wave, delivery.drive, rng)
    if voice.breath:
        wave = wave + breath(wave, rng) * np.float32(voice.breath)
    wave = tilted(wave, delivery.tilt_db + voice.tilt_db)
    if voice.tremor:
        wave = wave * shake(len(wave), SAMPLE_RATE_HZ, voice.tremor * TREMOR_LEVEL, TREMOR_HZ, rng)
    jitter_db = rng.uniform(-LEVEL_JITTER_DB, LEVEL_JITTER_DB)
    return at_level(wave, LEVEL_DB + delivery.gain_db + jitter_db)


def frame_rms(wave: Wave) -> NDArray[np.float64]:
    """wave: (samples,). Returns the level of each whole 10 ms at 16 kHz: (frames,)."""
    frames = wave[: len(wave) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1) + 1e-14)


def speech_level(wave: Wave) -> float:
    """Root mean square over the frames in which somebody speaks."""
    levels = frame_rms(wave)
    if not len(levels):
        return 1e-7
    loud = levels[levels > QUIET * np.percentile(levels, 90)]
    return float(np.sqrt(np.mean(loud**2)))


def at_level(wave: Wave, level_db: float) -> Wave:
    """`wave` with its speech at `level_db` against full scale."""
    return (wave * (10 ** (level_db / 20) / speech_level(wave))).astype(np.float32)


def trimmed(wave: Wave) -> Wave:
    """Without the silence before and after."""
    levels = frame_rms(wave)
    loud = np.flatnonzero(levels > 0.02 * levels.max(initial=0.0))
    if not len(loud):
        return wave
    return wave[max(0, loud[0] - 1) * FRAME_SAMPLES : (loud[-1] + 2) * FRAME_SAMPLES]


def pitch_curve(
    length: int, rate_hz: float, voice: Voice, delivery: Delivery, rng: Generator
) -> NDArray[np.float64]:
    """How many times faster each sample is read: the bend at the end and an old voice's shake."""
    curve = np.ones(length)
    if delivery.bend != 1.0:
        tail = length // 3
        curve[length - tail :] = delivery.bend ** np.linspace(0, 1.25, tail)
    if delivery.swing:
        curve *= shake(length, rate_hz, delivery.swing, SWING_HZ, rng)
    if voice.tremor:
        curve *= shake(length, rate_hz, voice.tremor * TREMOR_PITCH, TREMOR_HZ, rng)
    return curve


def shake(
    length: int, rate_hz: float, depth: float, pace_hz: tuple[float, float], rng: Generator
) -> NDArray[np.float32]:
    """A slow, slightly uneven wave around 1: (samples,)."""
    drift = np.interp(np.arange(length), np.linspace(0, length, 6), rng.uniform(*pace_hz, 6))
    phase = 2 * np.pi * (np.cumsum(drift) / rate_hz + rng.random())
    return (1 + depth * np.sin(phase)).astype(np.float32)


def warp(wave: Wave, speed: NDArray[np.float64]) -> Wave:
    """`wave` read `speed` times faster from place to place, by cubic interpolation.

    wave, speed: (samples,). Returns another number of samples.
    """
    if np.all(speed == 1.0):
        return wave
    # Where the reader is after a given time: the inverse of the time that each sample takes.
    time = np.concatenate(([0.0], np.cumsum(1 / speed)))
    place = np.interp(np.arange(int(time[-1])), time, np.arange(len(time)))
    left = np.floor(place).astype(np.int64)
    part = (place - left).astype(np.float32)
    padded = np.pad(wave, (1, 3))
    before, here, after, later = (padded[left + step] for step in range(4))
    slope = 0.5 * (after - before)
    curve = before - 2.5 * here + 2 * after - 0.5 * later
    rest = 0.5 * (later - before) + 1.5 * (here - after)
    return (((rest * part + curve) * part + slope) * part + here).astype(np.float32)


def shaped(wave: Wave, gain: Callable[[Any], Any]) -> Wave:
    """`wave` filtered by a gain that is a function of frequency in Hz."""
    size = fast_size(len(wave))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(np.fft.rfft(wave, size) * gain(hertz), size)[: len(wave)].astype(np.float32)


def fast_size(length: int) -> int:
    """The next multiple of a large power of two: quick to transform."""
    return -(-length // 2048) * 2048


def tilted(wave: Wave, db_per_octave: float) -> Wave:
    """Brighter (above 0) or duller above 500 Hz."""
    return shaped(wave, lambda hertz: 10 ** (db_per_octave * tilt_octaves(hertz) / 20))


def tilt_octaves(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each frequency lies above that from which a tilt begins."""
    return np.clip(np.log2(np.maximum(hertz, 1) / TILT_FROM_HZ), 0, TILT_OCTAVES)


def harsh(wave: Wave, drive: float, rng: Generator) -> Wave:
    """Saturated and rough, as a shout is; `wave` at level 1."""
    rough = 1 + 0.12 * np.sin(
        2 * np.pi * rng.uniform(60, 75) * np.arange(len(wave)) / SAMPLE_RATE_HZ
    )
    return (np.tanh(wave * rough * drive) / drive).astype(np.float32)


def breath(wave: Wave, rng: Generator) -> Wave:
    """Hissing that follows the loudness of `wave`, as loud as that."""
    window = 320
    total = np.cumsum(np.concatenate((np.zeros(window), np.abs(wave))))
    follow = (total[window:] - total[:-window]) / window
    hiss = rng.standard_normal(len(wave)) * follow
    hiss = shaped(hiss.astype(np.float32), lambda hertz: np.clip(hertz / 2500, 0.1, 1.5))
    return at_level(hiss, 0.0) * np.float32(speech_level(wave))


def room(wave: Wave, rng: Generator) -> Wave:
    """A small room around `wave`: an exponential tail, RT60 from 0.1 to 0.4 s; no longer."""
    rt60_s = rng.uniform(0.1, 0.4)
    length = int(rt60_s * SAMPLE_RATE_HZ)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: int(rng.uniform(0.003, 0.010) * SAMPLE_RATE_HZ)] = 0
    tail *= 10 ** (-rng.uniform(9, 18) / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = fast_size(len(wave) + length)
    return np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[
        : len(wave)
    ].astype(np.float32)


def _white(length: int, rng: Generator) -> Wave:
    return rng.standard_normal(length).astype(np.float32)


def _pink(length: int, rng: Generator) -> Wave:
    return shaped(_white(length, rng), lambda hertz: 1 / np.sqrt(np.maximum(hertz, 40)))


def _babble(length: int, rng: Generator) -> Wave:
    """Several far talkers: speech-like spectrum, each swelling at the pace of syllables."""
    total = np.zeros(length, np.float32)
    time_s = np.arange(length) / SAMPLE_RATE_HZ
    for _ in range(4):
        swell = np.sin(np.pi * rng.uniform(3, 5) * time_s + rng.uniform(0, 6)) ** 2
        total += (_white(length, rng) * swell).astype(np.float32)
    return shaped(total, lambda hertz: np.where(hertz < 100, 0.1, 1 / (1 + (hertz / 700) ** 1.5)))


def _hum(length: int, rng: Generator) -> Wave:
    mains_hz = rng.choice((50, 60))
    phase = 2 * np.pi * mains_hz * np.arange(length) / SAMPLE_RATE_HZ
    tones = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in (1, 2, 3, 4, 6))
    return (tones + 0.2 * rng.standard_normal(length)).astype(np.float32)


NOISES: dict[str, Callable[[int, Generator], Wave]] = {
    "white": _white, "pink": _pink, "babble": _babble, "hum": _hum,
}


def noise(name: str, length: int, level: float, rng: Generator) -> Wave:
    """(samples,) of a noise whose root mean square is `level`."""
    made = NOISES[name](length, rng)
    return made * np.float32(level / (np.sqrt(np.mean(made**2)) + 1e-9))


def limited(wave: Wave) -> Wave:
    """Rounds off what would clip; leaves everything below half of full scale untouched."""
    size = np.abs(wave)
    knee, room_left = 0.5, PEAK - 0.5
    over = knee + room_left * np.tanh((size - knee) / room_left)
    return np.where(size > knee, np.sign(wave) * over, wave).astype(np.float32)
