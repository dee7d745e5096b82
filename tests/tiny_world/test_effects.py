"""What feelings, events, rooms and noises do to a voice, on a made-up vowel (no engine)."""

import numpy as np
import pytest

from common_utils.tiny_world import effects
from common_utils.tiny_world.effects import DELIVERIES, SAMPLE_RATE_HZ
from common_utils.tiny_world.events import EVENTS
from common_utils.tiny_world.speaking import Surroundings, speak
from common_utils.tiny_world.voices import Manner, Spoken, Studio, Voice, Wave, all_voices

WOMAN = next(voice for voice in all_voices("test") if voice.cell == ("ADULT", "FEMALE"))
PLAIN = Manner()


class Vowel(Studio):
    """Sings one second of harmonics at the asked pitch, in place of an engine."""

    def __init__(self) -> None: ...

    def say(self, text: str, voice: Voice, manner: Manner = PLAIN) -> Spoken:
        time_s = np.arange(round(16_000 / manner.rate)) / 16_000
        hertz = voice.f0_hz * manner.pitch
        wave = sum(np.sin(2 * np.pi * hertz * k * time_s) / k for k in range(1, 12))
        return Spoken(np.asarray(wave, np.float32), 16_000, 1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def spoken(emotion: str, event: str = "OTHER", voice: Voice = WOMAN) -> Wave:
    return speak(Vowel(), "a", voice, emotion, event, rng(), Surroundings(0.0, 0.0))


def level_db(wave: Wave) -> float:
    return 20 * np.log10(effects.speech_level(wave))


def test_feelings_keep_their_absolute_loudness_in_order():
    levels = {name: level_db(spoken(name)) for name in DELIVERIES}
    assert levels["SAD"] < levels["NEUTRAL"] - 5
    assert levels["NEUTRAL"] < levels["HAPPY"] < levels["ANGER"] - 1
    assert levels["ANGER"] > levels["NEUTRAL"] + 5


@pytest.mark.parametrize("event", list(EVENTS))
def test_an_event_is_audible_at_any_feeling(event):
    for emotion in DELIVERIES:
        plain, with_event = spoken(emotion), spoken(emotion, event)
        assert len(with_event) > len(plain) + SAMPLE_RATE_HZ // 4
        assert np.isfinite(with_event).all()
        assert np.abs(with_event).max() < 1
