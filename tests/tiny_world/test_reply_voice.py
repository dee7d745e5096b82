"""Claims about the reply voice that need no voice model."""

import numpy as np
import pytest

pytest.importorskip("soxr")

from common_utils.tiny_world import reply_voice
from common_utils.tiny_world.reply_voice import SAMPLE_RATE_HZ, STYLES, ReplyVoice
from osum_echat.errors import InputError

TONE = (0.3 * np.sin(np.arange(SAMPLE_RATE_HZ) * 0.1)).astype(np.float32)


def test_silence_at_the_ends_is_trimmed_but_for_an_edge():
    quiet = np.zeros(SAMPLE_RATE_HZ, np.float32)
    left = reply_voice.trimmed(np.concatenate((quiet, TONE, quiet)))
    assert abs(len(left) - 1.1 * SAMPLE_RATE_HZ) < 3 * reply_voice.FRAME_SAMPLES


def test_parts_are_joined_with_a_gap_between():
    joined = reply_voice.join([TONE, TONE], gap_s=0.5)
    assert len(joined) == 2.5 * SAMPLE_RATE_HZ
    assert len(reply_voice.join([])) == 0


def test_styles_differ_in_level_by_their_gains():
    def power(decibels: float) -> float:
        return float(np.mean(reply_voice._levelled(TONE, decibels) ** 2))

    assert 10 * np.log10(power(-8.0) / power(0.0)) == pytest.approx(-8, abs=0.1)


def test_the_tables_say_what_each_style_is_like():
    assert STYLES["SOFT"].length > 1 > STYLES["BRISK"].length
    assert STYLES["CHEERFUL"].pitch > STYLES["CALM"].pitch > STYLES["SOFT"].pitch
    assert STYLES["CHEERFUL"].gain_db > 0 > STYLES["SOFT"].gain_db


def test_a_place_without_the_packages_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no en_US-joe-medium"):
        ReplyVoice(tmp_path)
