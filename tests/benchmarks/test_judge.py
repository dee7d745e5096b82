"""Claims about the judges of speech: words made comparable, errors counted."""

import pytest

from benchmarks.judge import Recogniser, error_rate, word_errors, words
from osum_echat.errors import InputError


def test_errors_are_counted_by_the_word_whatever_its_spelling():
    heard = words("my favorite color i am here")
    assert word_errors(words("My favourite colour, <HAPPY> I'm sure!"), heard) == 1
    assert error_rate([("one two three", "one two three"), ("four", "cat")]) == pytest.approx(50.0)


def test_a_folder_without_a_recogniser_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no model\.bin"):
        Recogniser(tmp_path)
