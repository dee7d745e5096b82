"""Claims about the judges of speech: words made comparable, errors counted, delivery measured."""

import numpy as np
import pytest

from benchmarks.judge import (
    JUDGE_RATE_HZ,
    Recogniser,
    delivery,
    error_rate,
    number_words,
    word_errors,
    words,
)
from osum_echat.errors import InputError


def tone(pitch_hz: float, seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    times = np.arange(int(seconds * JUDGE_RATE_HZ)) / JUDGE_RATE_HZ
    harmonics = [np.sin(2 * np.pi * pitch_hz * k * times) / k for k in range(1, 9)]
    return (level * sum(harmonics)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("My favourite colour!", "my favorite color"),
        ("At 7:30, <HAPPY> okay.", "at seven thirty ok"),
        ("1,204 pyjamas", "one thousand two hundred four pajamas"),
        ("I'm here", "i’m here"),
    ],
)
def test_two_ways_to_write_the_same_words_are_one(text, same):
    assert words(text) == words(same)


@pytest.mark.parametrize(
    ("number", "read"),
    [(0, "zero"), (13, "thirteen"), (90, "ninety"), (345, "three hundred forty five"),
     (20_001, "twenty thousand one")],
)  # fmt: skip
def test_a_number_is_read_out(number, read):
    assert number_words(number) == read


@pytest.mark.parametrize(
    ("truth", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a x c d", 2), ("a b", "", 2), ("", "a", 1)],
)
def test_errors_are_counted_by_the_word(truth, heard, errors):
    assert word_errors(truth.split(), heard.split()) == errors


def test_the_error_rate_weighs_every_word_alike():
    assert error_rate([("one two three", "one two three"), ("four", "five")]) == 25.0


@pytest.mark.parametrize("pitch_hz", [95.0, 140.0, 220.0, 330.0])
def test_pitch_is_found_within_three_percent(pitch_hz):
    assert delivery(tone(pitch_hz), "a").pitch_hz == pytest.approx(pitch_hz, rel=0.03)


def test_pauses_do_not_slow_the_rate_and_loudness_is_told():
    speech, pause = tone(120.0), np.zeros(JUDGE_RATE_HZ, np.float32)
    plain = delivery(speech, "hello world")
    paused = delivery(np.concatenate([speech, pause]), "hello world")
    assert paused.letters_per_s == pytest.approx(plain.letters_per_s, rel=0.05)
    loud = delivery(2 * speech, "hello world")
    assert loud.level_db - plain.level_db == pytest.approx(6.02, abs=0.01)


def test_noise_has_no_pitch():
    noise = np.random.default_rng(1).normal(0, 0.1, JUDGE_RATE_HZ).astype(np.float32)
    assert np.isnan(delivery(noise, "a").pitch_hz)


def test_a_folder_without_a_recogniser_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no model\.bin"):
        Recogniser(tmp_path)
