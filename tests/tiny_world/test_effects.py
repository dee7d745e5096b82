"""What feelings, events, rooms and noises do to a voice, on a made-up vowel (no engine)."""

import numpy as np
import pytest

from common_utils.tiny_world import effects
from common_utils.tiny_world.effects import DELIVERIES, SAMPLE_RATE_HZ
from common_utils.tiny_world.events import EVENTS
from common_utils.tiny_world.speaking import STUDIO_QUIET, middle_pause, placed, speak
from common_utils.tiny_world.voices import Manner, Spoken, Studio, Voice, Wave, all_voices
from osum_echat.errors import DataError

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
    return speak(Vowel(), "a", voice, emotion, event, rng(), STUDIO_QUIET)


def level_db(wave: Wave) -> float:
    return 20 * np.log10(effects.speech_level(wave))


def test_feelings_keep_their_absolute_loudness_in_order():
    levels = {name: level_db(spoken(name)) for name in DELIVERIES}
    assert levels["SAD"] < levels["NEUTRAL"] - 5
    assert levels["NEUTRAL"] < levels["HAPPY"] < levels["ANGER"] - 1
    assert levels["ANGER"] > levels["NEUTRAL"] + 5


def test_warp_by_a_constant_scales_frequency_and_length():
    wave = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = effects.warp(wave, np.full(16_000, 1.25))
    assert len(faster) == pytest.approx(12_800, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(faster, 16_000)))
    assert peak == pytest.approx(250, abs=2)


def test_limited_never_clips_and_leaves_quiet_samples_alone():
    wave = np.linspace(-4, 4, 999).astype(np.float32)
    held = effects.limited(wave)
    assert np.abs(held).max() < 1
    quiet = np.abs(wave) < 0.5
    assert np.array_equal(held[quiet], wave[quiet])


@pytest.mark.parametrize("name", list(effects.NOISES))
def test_a_noise_has_the_level_asked_for(name):
    made = effects.noise(name, 8000, 0.01, rng())
    assert np.sqrt(np.mean(made**2)) == pytest.approx(0.01, rel=1e-3)


def test_a_room_keeps_the_direct_sound_first():
    click = np.zeros(8000, np.float32)
    click[100] = 1.0
    heard = effects.room(click, rng())
    assert np.argmax(np.abs(heard)) == 100
    assert np.abs(heard[200:]).max() > 1e-3


@pytest.mark.parametrize("event", list(EVENTS))
def test_an_event_is_audible_at_any_feeling(event):
    for emotion in DELIVERIES:
        plain, with_event = spoken(emotion), spoken(emotion, event)
        assert len(with_event) > len(plain) + SAMPLE_RATE_HZ // 4
        assert np.isfinite(with_event).all()
        assert np.abs(with_event).max() < 1


def test_the_same_randomness_gives_the_same_sound():
    assert np.array_equal(spoken("ANGER", "CRY"), spoken("ANGER", "CRY"))


def test_middle_pause_is_found_between_words_only():
    word = np.ones(4000, np.float32)
    assert middle_pause(np.concatenate((word, word))) is None
    cut = middle_pause(np.concatenate((word, np.zeros(1600, np.float32), word)))
    assert cut is not None
    assert 4000 < cut < 5600


def test_placed_keeps_every_sample_of_speech_and_event():
    speech, event = np.full(8000, 0.5, np.float32), np.full(3000, 0.25, np.float32)
    for seed in range(8):
        both = placed(speech, event, rng(seed))
        assert np.count_nonzero(both == 0.5) == 8000
        assert np.count_nonzero(both == 0.25) == 3000


def test_unknown_labels_are_refused():
    with pytest.raises(DataError, match="emotion 'BORED': not one of NEUTRAL"):
        speak(Vowel(), "a", WOMAN, "BORED", "OTHER", rng())
    with pytest.raises(DataError, match="event 'SNEEZE': not one of OTHER, LAUGH"):
        speak(Vowel(), "a", WOMAN, "HAPPY", "SNEEZE", rng())
