"""Drills: words that cannot be guessed, in rows that training reads."""

import json
from pathlib import Path
from random import Random

import pytest

from common_utils.tiny_world import drill
from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.drill import Drill
from osum_echat import audio
from osum_echat.records import Utterance

EXCHANGES = [
    {"user_text": "My cat is ill.", "turns": []},
    {"user_text": "It rained.", "turns": [{"user_text": "We went to the lake."}]},
]
DRILL = Drill.of(EXCHANGES)
SAID = {"my cat is ill", "it rained", "we went to the lake"}
ASSETS = AssetPaths(Path(__file__).parents[2] / "build" / "assets")
needs_espeak = pytest.mark.skipif(
    not ASSETS.espeak_library.is_file(), reason="build/assets is not unpacked"
)


def test_the_words_are_the_users_and_their_order_mostly_new():
    words = {word for sentence in SAID for word in sentence.split()}
    made = [DRILL.turn(Random(seed))["user_text"] for seed in range(300)]
    assert {word for text in made for word in text.split()} == words
    assert sum(text in SAID for text in made) < 0.25 * len(made)


def test_a_silent_row_is_an_utterance_of_many_words():
    for raw in drill.silent_rows(DRILL, 200, 3):
        utterance = Utterance.from_json(json.loads(json.dumps(raw)), "reading.list", Path())
        assert (utterance.user.audio, utterance.user.text) == (None, raw["txt"])
        assert utterance.task == drill.PLAIN_TAG
        assert drill.SILENT_WORDS[0] <= len(raw["txt"].split()) <= drill.SILENT_WORDS[1]


@needs_espeak
def test_a_spoken_row_has_its_sound_words_and_labels(tmp_path):
    (tmp_path / "audio").mkdir()
    rows = list(drill.spoken_rows(DRILL, tmp_path, 4, 1, ASSETS.root))
    for raw in rows:
        utterance = Utterance.from_json(raw, "drill.list", tmp_path)
        assert len(audio.load(utterance.user.audio)) > 1000
        assert raw["txt"].startswith(utterance.user.text)
        full = raw["task"] != drill.PLAIN_TAG
        assert full == (f"<{utterance.labels.age}>" in raw["txt"])
    first = (tmp_path / rows[0]["wav"]).read_bytes()
    list(drill.spoken_rows(DRILL, tmp_path, 1, 1, ASSETS.root))
    assert (tmp_path / rows[0]["wav"]).read_bytes() == first
