"""One spoken turn from words, voice and labels to the samples that a microphone would record."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from common_utils.tiny_world import effects
from common_utils.tiny_world.effects import SAMPLE_RATE_HZ
from common_utils.tiny_world.events import EVENTS
from common_utils.tiny_world.voices import Studio, Voice, Wave
from osum_echat.errors import DataError

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


def _silence(seconds: float) -> Wave:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)
