"""Claims about the reply voice that need no voice model, and about which sentences it speaks."""

import json
from pathlib import Path
from random import Random

import pytest

from common_utils.tiny_world import reply_set
from common_utils.tiny_world.reply_voice import STYLES, ReplyVoice
from osum_echat.errors import InputError


def test_a_place_without_the_packages_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no en_US-joe-medium"):
        ReplyVoice(tmp_path)


def test_each_line_is_spoken_in_as_many_styles_as_asked(tmp_path: Path):
    path = tmp_path / "lines.txt"
    path.write_text("One.\n\n Two. \n", encoding="utf-8")
    pairs = reply_set.read_pairs(path, len(STYLES), Random(1))
    assert sorted(pairs) == sorted((line, style) for line in ("One.", "Two.") for style in STYLES)
    drawn = reply_set.read_pairs(path, 1, Random(1))
    assert [line for line, _ in drawn] == ["One.", "Two."]
    assert {reply_set.read_pairs(path, 1, Random(seed))[0][1] for seed in range(40)} == set(STYLES)


def test_of_a_corpus_it_is_what_users_say_each_once(tmp_path: Path):
    rows = [{"user_text": "Hello.", "turns": [{"user_text": "Before."}]},
            {"user_text": "Hello.", "turns": []}]  # fmt: skip
    path = tmp_path / "exchanges.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = [line for line, _ in reply_set.read_pairs(path, 1, Random(1))]
    assert lines == ["Before.", "Hello."]
