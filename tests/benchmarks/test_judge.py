"""Claims about the judges of speech: words made comparable, errors counted."""

import pytest

from benchmarks.judge import Recogniser, error_rate, number_words, word_errors, words
from osum_echat.errors import InputError


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


def test_a_folder_without_a_recogniser_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no model\.bin"):
        Recogniser(tmp_path)
