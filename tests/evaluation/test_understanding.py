"""Claims about understanding: what is heard in every form of list, by set, and under noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.evaluation.batch import table
from osum_echat.evaluation.understanding import UtteranceList, grade, with_noise
from osum_echat.metrics import NO_LABEL
from osum_echat.records import LIST_KEYS, Labels, Turn, Utterance
from tests.data.world import raw_rows, write_lines, write_shard
from tests.evaluation.spoken import Spoken, scored, write_wav

TAG = "<TRANSCRIBE> <AGE> <EMOTION>"


class Listener(Spoken):
    """Hears the words rightly, and always a sad child."""

    def reply(self, source, **options):
        reply = super().reply(source, **options)
        words = source.user.reply_text.partition("<")[0]
        object.__setattr__(reply, "text", f"{words}<CHILD><SAD>")
        object.__setattr__(reply, "heard", words)
        object.__setattr__(reply, "labels", Labels(age="CHILD", emotion="SAD"))
        return reply


def write_list(folder, name, labels):
    rows = []
    for number, (age, emotion) in enumerate(labels):
        write_wav(folder / f"{name}{number}.wav")
        rows.append({"key": f"{name}{number}", "wav": f"{name}{number}.wav", "task": TAG,
                     "txt": f"hello number {number}<{age}><{emotion}>",
                     "extra": {"age": age, "gender": "MALE", "q_emotion": emotion}})  # fmt: skip
    (folder / f"{name}.list").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(data, out, *more):
    return scored("understanding", data, out, Listener(), *more)["measures"]


def test_words_and_labels_are_scored_by_set_with_other_spellings_as_one(tmp_path):
    write_list(tmp_path, "real", [("CHILD", "SAD"), ("OLD", "SAD")])
    write_list(tmp_path, "synthetic", [("child", "<SAD>"), ("CHILD", "HAPPY"), ("CHILD", "SAD")])
    (tmp_path / "data.yaml").write_text(
        "people: {path: real.list}\nsynthetic: {path: synthetic.list}\n"
    )
    found = run(tmp_path / "data.yaml", tmp_path / "out")
    assert found["people/WER english"]["value"] == 0
    assert found["people/age"]["value"] == 50 and found["synthetic/age"]["value"] == 100
    assert found["synthetic/emotion"]["value"] == pytest.approx(66.67, abs=0.01)
    assert found["synthetic/emotion macro-F1"]["value"] == pytest.approx(40.0, abs=0.1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "people: emotion" in page and page.count("<svg") == 5
    assert "data:audio/wav;base64," in page


def test_noise_is_a_set_of_its_own_has_the_power_asked_for_and_is_the_same_every_time(tmp_path):
    write_list(tmp_path, "a", [("CHILD", "SAD")] * 3 + [("OLD", "HAPPY")] * 3)
    found = run(tmp_path / "a.list", tmp_path / "out", "--noise", "10")
    assert found["a/age"]["count"] == found["a, 10 dB/age"]["count"] == 6
    words = (tmp_path / "out" / "report.md").read_text()
    assert "Worst of 4 cells with 3 or more items: OLD, MALE, HAPPY, 10 dB: 0.0 %" in words
    plain = Utterance("u", TAG, Turn(audio=write_wav(tmp_path / "u.wav")))
    samples = audio.load(plain.user.audio).numpy()
    noisy = [audio.load(with_noise(plain, 10.0, 3).user.audio).numpy() for _ in range(2)]
    assert np.array_equal(*noisy)
    ratio = np.square(samples).mean() / np.square(noisy[0] - samples).mean()
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.3)


Record = dict[str, Any]


def labels(**known: str | None) -> dict[str, str | None]:
    return {name: known.get(name) for name in LIST_KEYS}


def record(task: str, said: str | None, heard: str | None, **other: Any) -> Record:
    return {"task": task, "reference": said, "reference_heard": said, "heard": heard,
            "text": heard or "", "labels": labels(), "reference_labels": labels(), "error": None,
            **other}  # fmt: skip


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


def keys(utterances: UtteranceList) -> list[str]:
    every = [utterances.read(index) for index in range(len(utterances))]
    return [one.key for one in every if isinstance(one, Utterance)]


def test_a_yaml_reads_each_entry_once_and_leaves_out_weight_0(tmp_path: Path) -> None:
    rows = raw_rows(tmp_path, "understand", 5)
    write_shard(tmp_path / "a.tar", rows[:3], tmp_path)
    write_lines(tmp_path / "a.list", rows[1:3])
    (tmp_path / "data.yaml").write_text(
        "tts: {path: tts.list, weight: 4}\n"
        "none: {path: absent.list, weight: 0}\n"
        "shard: {path: a.tar, weight: 0.5}\n"
    )
    utterances = UtteranceList(str(tmp_path / "data.yaml"))
    assert keys(utterances) == ["u0", "u1", "u2", "u3", "u4", "u0", "u1", "u2"]
    assert [entry["name"] for entry in utterances.identity()] == ["tts", "shard"]


def test_where_no_labels_are_asked_none_are_wrong(tmp_path):
    write_list(tmp_path, "a", [("CHILD", "SAD")] * 3)
    run(tmp_path / "a.list", tmp_path / "out", "--task", "asr")
    words = (tmp_path / "out" / "report.md").read_text()
    assert "CHILD, MALE, SAD, clean: 0.0 % word errors (3 items)" in words
    assert "| CHILD | MALE | SAD | clean | - | 0.00 | 3 |" in words


def test_a_list_that_has_changed_is_another_one(tmp_path):
    write_list(tmp_path, "a", [("CHILD", "SAD")] * 2)
    run(tmp_path / "a.list", tmp_path / "out")
    write_list(tmp_path, "a", [("OLD", "SAD")] * 2)
    with pytest.raises(InputError, match="holds answers of another lists"):
        run(tmp_path / "a.list", tmp_path / "out")
