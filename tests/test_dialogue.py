"""Claims about the file of a conversation so far: turns in order, faults named."""

import json
from pathlib import Path

import pytest

from osum_echat import records
from osum_echat.errors import InputError
from osum_echat.records import Turn


def written(folder: Path, turns: object) -> Path:
    path = folder / "dialogue.json"
    path.write_text(turns if isinstance(turns, str) else json.dumps(turns))
    return path


def test_turns_keep_their_order_and_wavs_lie_beside_the_file(tmp_path):
    path = written(tmp_path, [
        {"wav": "a.wav", "reply": "Hello."},
        {"text": "who are you?", "reply": "A model.", "reply_speech": [3, 4]},
    ])  # fmt: skip
    assert records.read_turns(path) == (
        Turn(audio=tmp_path / "a.wav", reply_text="Hello."),
        Turn(text="who are you?", reply_text="A model.", reply_speech=(3, 4)),
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("{", "not JSON"),
        ({"reply": "Hello."}, "a dict; write a list of turns"),
        ([{"wav": "a.wav", "answer": "Hello."}], "turn 1: write an object with wav, text, reply"),
        ([{"reply": "Hello."}], "turn 1: give what the user said"),
        ([{"text": "hi", "reply": "a"}, {"text": "hi"}], "turn 2: give the reply"),
        ([{"wav": 3, "reply": "Hello."}], "wav is 3, need a string"),
        ([{"text": "hi", "reply": "a", "reply_speech": [0.5]}], "list of whole numbers"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path, turns, message):
    with pytest.raises(InputError, match=message):
        records.read_turns(written(tmp_path, turns))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no_such.json: No such file"):
        records.read_turns(tmp_path / "no_such.json")
