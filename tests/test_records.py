"""Claims about records: what a raw line holds, and how a bad one is refused."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from osum_echat.errors import DataError, InputError
from osum_echat.records import Labels, Turn, Utterance, read_turns

ROOT = Path("lists")
LINE = {
    "key": "a1", "wav": "audio/a1.wav", "txt": "Poor thing.",
    "task": "<S2TCHAT> <TEXT2TOKEN> <THINK>",
    "wav_1": "audio/a0.wav", "txt_1": "Hello.",
    "extra": {
        "q_txt": "i lost my kite", "age": "<child>", "gender": "MALE", "q_emotion": "<SAD>",
        "caption": "<NONE>", "reply_emotion": "soft", "think_str": "I hear a sad child.",
        "speech_token": [5, 6], "speech_token_1": [1, 2], "speech_token_num": 1,
    },
}  # fmt: skip


def read(**changes: object) -> Utterance:
    return Utterance.from_json({**LINE, **changes}, "data.list (record 1)", ROOT)


def test_a_raw_line_becomes_an_utterance():
    assert read() == Utterance(
        key="a1", task="<S2TCHAT> <TEXT2TOKEN> <THINK>",
        user=Turn(ROOT / "audio/a1.wav", "i lost my kite", "Poor thing.", (5, 6)),
        labels=Labels("CHILD", "MALE", "SAD", None, "SOFT"), thought="I hear a sad child.",
        history=(Turn(ROOT / "audio/a0.wav", None, "Hello.", (1, 2)),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [({"extra": json.dumps(LINE["extra"])}, read()), ({"wav": None}, {"audio": None}),
     ({"wav": "/data/x.wav"}, {"audio": Path("/data/x.wav")}), ({"txt_1": "-1"}, {"history": ()}),
     ({"txt_\u00b2": "a digit to str.isdigit, and no number"}, read()),
     ({"start": 1, "end": 2.5}, {"segment_s": (1.0, 2.5)}),
     ({"extra": {"question": "who are you"}}, {"prompt": "who are you", "text": "who are you"}),
     ({"wav": None, "wav_1": None, "extra": {"speech_token_1": [1, 2], "speech_starts_1": [0, 1],
                                             "speech_starts": [0]}},  # clauses of a text to speak
      {"speech_starts": (0,), "history": (Turn(None, None, "Hello.", (1, 2), (0, 1)),)})],
)  # fmt: skip
def test_a_field_may_be_absent_or_of_another_form(change, found):
    one = read(**change)
    if isinstance(found, Utterance):
        assert one == found
    else:
        known = {**asdict(one.user), "history": one.history, "prompt": one.prompt}
        assert {name: known[name] for name in found} == found


@pytest.mark.parametrize(("change", "message"), [
    ({"key": None}, r"data.list \(record 1\): key is missing"),
    ({"extra": "{"}, "extra is not JSON"),
    ({"extra": '{"q_txt": "\\ud83d"}'}, "extra is not JSON.*surrogates"),
    ({"extra": {"speech_token": [1, -2]}}, "speech_token must be a list of whole numbers"),
    ({"wav_1": None}, "wav_1 is missing"), ({"start": 3, "end": 2}, "start 3 and end 2"),
])  # fmt: skip
def test_a_bad_field_is_named(change, message):
    with pytest.raises(DataError, match=message):
        read(**change)


def written(folder: Path, turns: object) -> Path:
    path = folder / "dialogue.json"
    path.write_text(turns if isinstance(turns, str) else json.dumps(turns))
    return path


def test_turns_keep_their_order_and_wavs_lie_beside_the_file(tmp_path):
    path = written(tmp_path, "\ufeff" + json.dumps([
        {"wav": "a.wav", "reply": "Hello."},
        {"text": "who are you?", "reply": "A model.", "reply_speech": [3, 4]},
    ]))  # fmt: skip
    assert read_turns(path) == (
        Turn(audio=tmp_path / "a.wav", reply_text="Hello."),
        Turn(text="who are you?", reply_text="A model.", reply_speech=(3, 4)),
    )


@pytest.mark.parametrize(("turns", "message"), [
    ("{", "not JSON"), ('[{"text": "\\ud83d", "reply": "b"}]', "surrogates"),
    ([{"wav": 5, "reply": "a"}], "turn 1: wav is 5, need a string"),
    ([{"wav": None, "text": "hi", "reply": "a"}], "turn 1: wav is null"),
    ([{"text": "hi", "reply": "a", "reply_speech": None}], "turn 1: reply_speech is null"),
    ({"reply": "Hello."}, "a dict; write a list of turns"),
    ([{"wav": "a.wav", "answer": "Hello."}], "turn 1: write an object with wav, text, reply"),
    ([{"reply": "Hello."}], "turn 1: give what the user said"),
    ([{"text": "hi", "reply": "a", "reply_speech": [0.5]}], "list of whole numbers"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_told(tmp_path, turns, message):
    with pytest.raises(InputError, match=message):
        read_turns(written(tmp_path, turns))
