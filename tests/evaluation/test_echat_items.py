"""Claims about the forms that items come in: each is read, and what is wrong is told."""

import json
from pathlib import Path

import pytest

from osum_echat.errors import DataError, InputError
from osum_echat.evaluation.echat_items import read
from osum_echat.records import Labels


def write(folder: Path, *rows: object, name: str = "items.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


WORLD = {
    "kind": "single", "user_text": "I lost my kite.", "reply_text": "Oh no.", "turns": [],
    "labels": {"age": "CHILD", "gender": "MALE", "emotion": "SAD", "event": "CRY"},
    "wav": "audio/k.wav", "reply_wav": "replies/k.wav",
}  # fmt: skip


def test_echat_style_reads_labels_wherever_they_stand(tmp_path):
    place = write(
        tmp_path,
        {"key": "a", "wav": "a.wav", "transcript": "hi", "labels": {"emotion": "happy"}},
        {"id": "b", "query_wav": "/x/b.wav", "q_txt": "ho", "age": "<OLD>", "gender": "FEMALE"},
        {"utt": "c", "audio": "c.wav", "text": "he", "category": "Event", "real": True,
         "extra": {"caption": "<COUGH>", "q_emotion": "angry"}},
    )  # fmt: skip
    first, second, third = read(place)
    assert (first.category, first.labels, first.wav) == (
        "emotion", Labels(emotion="HAPPY"), tmp_path / "a.wav")  # fmt: skip
    assert (second.category, second.wav) == ("multi", Path("/x/b.wav"))
    assert second.labels == Labels(age="OLD", gender="FEMALE")
    assert third.category == "event" and third.real is True
    assert third.labels == Labels(emotion="ANGER", event="COUGH")


def test_humdial_style_answers_the_last_user_turn(tmp_path):
    turns = [
        {"role": "user", "audio": "1.wav", "text": "one", "emotion": "sad"},
        {"role": "assistant", "text": "first answer", "audio": "r1.wav"},
        {"role": "user", "audio": "2.wav", "text": "two", "emotion": "happy"},
        {"role": "assistant", "text": "the reference, not shown"},
    ]
    (item,) = read(write(tmp_path, {"id": "d", "turns": turns}))
    assert (item.category, item.transcript, item.labels.emotion) == ("multi-turn", "two", "HAPPY")
    assert [(turn.text, turn.reply_text) for turn in item.earlier] == [("one", "first answer")]
    assert item.earlier_replies == (tmp_path / "r1.wav",)


def test_the_tiny_world_gives_every_category(tmp_path):
    rows = [WORLD | {"key": f"k{number}"} for number in range(5)]
    rows.append(WORLD | {"key": "d", "kind": "dialogue", "turns": [WORLD]})
    rows.append(WORLD | {"key": "i", "kind": "identity"})
    write(tmp_path, *rows, name="exchanges.jsonl")
    items = read(tmp_path)
    assert [one.category for one in items] == [
        "emotion", "age", "gender", "event", "multi", "multi-turn", "identity",
    ]  # fmt: skip
    assert items[5].earlier[0].audio == tmp_path / "audio/k.wav"
    assert items[5].earlier_replies == (tmp_path / "replies/k.wav",)


def test_a_voice_without_a_cue_is_not_asked_about_it(tmp_path):
    plain = {"age": "ADULT", "gender": "MALE", "emotion": "NEUTRAL", "event": "OTHER"}
    rows = [WORLD | {"key": f"k{number}", "labels": plain} for number in range(10)]
    write(tmp_path, *rows, name="exchanges.jsonl")
    assert {one.category for one in read(tmp_path)} == {"age", "gender"}


@pytest.mark.parametrize("row, told", [
    ({"wav": "a.wav", "transcript": "x"}, "line 1: none of key, id, utt"),
    ({"key": "a", "transcript": "x"}, "none of wav, audio"),
    ({"key": "a", "wav": "a.wav"}, "none of transcript"),
    ({"key": "a", "wav": "a.wav", "text": "x", "age": 7}, "age is 7, need a string"),
    ({"id": "a", "turns": [{"text": "x"}]}, "a turn without a role"),
    ({"id": "a", "turns": [{"role": "assistant", "text": "x"}]}, "no turn with the role user"),
    ([1], "a JSON list, need an object"),
])  # fmt: skip
def test_a_line_that_cannot_be_used_is_told_with_its_number(tmp_path, row, told):
    with pytest.raises(DataError, match=told):
        read(write(tmp_path, row))


def test_a_broken_line_and_a_missing_or_empty_file_are_told(tmp_path):
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="line 1: not JSON"):
        read(tmp_path / "broken.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="no items"):
        read(write(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"no exchanges\.jsonl and 0 other"):
        (tmp_path / "folder").mkdir()
        read(tmp_path / "folder")
