"""Claims about the measures of delivery: pitch, its range, rate and level."""

import numpy as np
import pytest

from osum_echat.evaluation.delivery import RATE_HZ, delivery, letters, middle


def tone(pitch_hz: float, seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    harmonics = [np.sin(2 * np.pi * pitch_hz * k * times) / k for k in range(1, 9)]
    return (level * sum(harmonics)).astype(np.float32)


@pytest.mark.parametrize("pitch_hz", [95.0, 140.0, 220.0, 330.0])
def test_pitch_is_found_within_three_percent(pitch_hz):
    assert delivery(tone(pitch_hz), "a").pitch_hz == pytest.approx(pitch_hz, rel=0.03)


def test_pauses_do_not_slow_the_rate_and_loudness_is_told():
    speech, pause = tone(120.0), np.zeros(RATE_HZ, np.float32)
    plain = delivery(speech, "hello world")
    paused = delivery(np.concatenate([speech, pause]), "hello world")
    assert paused.letters_per_s == pytest.approx(plain.letters_per_s, rel=0.05)
    loud = delivery(2 * speech, "hello world")
    assert loud.level_db - plain.level_db == pytest.approx(6.02, abs=0.01)


def test_noise_has_no_pitch():
    noise = np.random.default_rng(1).normal(0, 0.1, RATE_HZ).astype(np.float32)
    assert np.isnan(delivery(noise, "a").pitch_hz)


def test_a_glide_has_a_range_and_a_steady_tone_has_none():
    times = np.arange(RATE_HZ) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 * 2**times) / RATE_HZ      # an octave up in a second
    glide = sum(np.sin(k * phase) / k for k in range(1, 9)).astype(np.float32)
    assert delivery(glide, "a").range_semitones == pytest.approx(9.6, abs=0.5)
    assert delivery(tone(120.0), "a").range_semitones < 0.3


def test_chinese_characters_count_as_syllables_and_tags_as_nothing():
    assert letters("<HAPPY>Hi, 你好 7") == 2 + 2 * 3


def test_the_middle_passes_over_what_is_not_voiced():
    noise = np.random.default_rng(1).normal(0, 0.1, RATE_HZ).astype(np.float32)
    found = [delivery(tone(pitch), "a") for pitch in (100.0, 200.0, 300.0)]
    assert middle([*found, delivery(noise, "a")]).pitch_hz == pytest.approx(200, rel=0.03)
