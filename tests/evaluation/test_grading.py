"""Claims about grades: words by language, labels by field, failures counted and in no figure."""

import json
from typing import Any

import pytest

from osum_echat.evaluation.grading import grade, table
from osum_echat.metrics import NO_LABEL
from osum_echat.thinking import FIELDS

Record = dict[str, Any]


def labels(**known: str | None) -> dict[str, str | None]:
    return {name: known.get(name) for name in FIELDS}


def record(task: str, said: str | None, heard: str | None, **other: Any) -> Record:
    return {
        "task": task, "reference": said, "reference_heard": said, "heard": heard,
        "text": heard or "", "labels": labels(), "reference_labels": labels(), "error": None,
        **other,
    }  # fmt: skip


def test_words_are_counted_by_language_after_normalising() -> None:
    found = grade([
        record("<TRANSCRIBE>", "Two colours, please!", "2 colors please"),
        record("<TRANSCRIBE>", "who are you", "who is you"),
        record("<TRANSCRIBE>", "今天3点", "今天三点。"),
        record("<TRANSCRIBE>", "我爱 python", "我 python"),
    ])  # fmt: skip
    (task,) = found.tasks
    english, chinese = task.words["english"], task.words["chinese"]
    assert (english.name, english.found.errors, english.found.total) == ("WER", 1, 6)
    assert (chinese.name, chinese.found.deletions, chinese.found.total) == ("CER", 1, 7)
    assert english.low <= english.found.rate <= english.high and english.utterances == 2


def test_the_language_can_be_told() -> None:
    records = [record("<TRANSCRIBE>", "ok", "okay"), record("<TRANSCRIBE>", "好", "好")]
    assert set(grade(records, "chinese").tasks[0].words) == {"chinese"}


def test_words_before_the_mark_of_a_reply_are_the_transcript() -> None:
    tag = "<TRANSCRIBE> <S2TCHAT>"
    said = record(tag, "who are you", "who are you I am nobody",
                  text="who are you<开始回答>I am nobody")  # fmt: skip
    assert grade([said]).tasks[0].words["english"].found.rate == 0


def test_labels_that_are_asked_or_told_are_counted_in_any_spelling() -> None:
    understand, think = "<TRANSCRIBE> <AGE>", "<S2TCHAT> <THINKER>"
    found = grade([
        record(understand, "a", "a", labels=labels(), reference_labels=labels(age="CHILD")),
        record(understand, "a", "a", labels=labels(age="YOUTH"),
               reference_labels=labels(age="ADULT", emotion="SAD")),
        record(think, "a", "a", labels=labels(emotion="angry", style="SOFT"),
               reference_labels=labels(emotion="ANGER", style="CALM", age="OLD")),
    ])  # fmt: skip
    scores = {task.task: task.labels for task in found.tasks}
    assert list(scores[understand]) == ["age"] and list(scores[think]) == ["emotion"]
    age = scores[understand]["age"].confusion
    assert (age.labels, age.accuracy) == (("ADULT", "CHILD", NO_LABEL), 0.5)
    assert scores[think]["emotion"].confusion.accuracy == 1.0


def test_failures_are_counted_and_in_no_figure() -> None:
    found = grade([
        record("<TRANSCRIBE>", "one", "one"),
        {"task": "<TRANSCRIBE>", "reference_heard": "two", "error": "not audio"},
        {"task": None, "error": "not JSON"},
        {"task": None, "left_out": "no line in the list"},
        {"task": "<SING>", "error": "task '<SING>': not one of"},
    ])  # fmt: skip
    assert (found.answered, found.failed, found.unread, found.left_out) == (1, 3, 1, 1)
    assert found.tasks[1].words["english"].found.total == 1
    told = table(found)
    assert "<TRANSCRIBE>: 1 answered, 1 failed" in told and "<SING>: 0 answered, 1 failed" in told
    assert "1 records could not be read" in told and "1 records are left out" in told


def test_a_task_without_words_or_labels_is_only_counted() -> None:
    found = grade([record("<TEXT2TEXT>", None, None), record("<TEXT2TOKEN>", None, None)])
    assert [(task.answered, task.words, task.labels) for task in found.tasks] == [(1, {}, {})] * 2


def test_a_grade_is_json_and_a_table() -> None:
    pairs = [("SAD", "SAD"), ("SAD", "HAPPY"), ("HAPPY", "HAPPY")]
    found = grade([
        record("<TRANSCRIBE> <EMOTION>", "we won", "we want", labels=labels(emotion=heard),
               reference_labels=labels(emotion=said))
        for said, heard in pairs
    ])  # fmt: skip
    plain = json.loads(json.dumps(found.to_json()))["tasks"]["<TRANSCRIBE> <EMOTION>"]
    assert plain["words"]["english"]["found"]["rate"] == 0.5
    assert plain["labels"]["emotion"]["counts"] == [[1, 0], [1, 1]]
    assert plain["labels"]["emotion"]["accuracy"] == pytest.approx(2 / 3)
    assert table(found).splitlines()[1:] == [
        "  WER  50.00 % [50.00, 50.00]  3 wrong, 0 missing, 0 too many of 6; 3 utterances",
        "  emotion  66.7 % right [0.0, 100.0], macro-F1 0.667; 3 utterances",
        "          HAPPY   SAD",
        "    HAPPY     1     .",
        "    SAD       1     1",
    ]
