"""Claims about EChat-eval: what is asked, what the judge sees, how kinds of thought compare."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.evaluation.echat_eval import malformed, read
from osum_echat.evaluation.reply_emotion import RATE_HZ, Acoustic, Delivery, delivery, read_neutral
from osum_echat.records import Labels
from tests.evaluation import spoken
from tests.evaluation.judge_server import scores as judged_scores
from tests.evaluation.judge_server import serving
from tests.evaluation.spoken import LABELS, Spoken, scored, write_queries, write_wav


def run(data, out, assistant, *more):
    return scored("echat_eval", data, out, assistant, *more)


def run_judged(data, out, *more):
    """By a chat judge."""
    return run(data, out, Spoken(), "--judge", "chat", "--judge-model", "judge-x", "--judge-seed",
               "3", "--thinking", "label", *more)  # fmt: skip


def test_both_kinds_of_thought_are_asked_and_stand_in_one_table(tmp_path):
    found = run(write_queries(tmp_path / "d"), tmp_path / "out", Spoken())["measures"]
    assert found["label/all"]["count"] == found["natural/all"]["count"] == 4
    assert found["natural/thought length"]["value"] == len("I hear a boy.")
    assert found["label/malformed"]["value"] == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Kinds of thought" in report
    assert "| this model, natural thinking, by rules-v1 |" in report
    assert "OSUM-EChat (paper) | 58.00 | 63.10" in report
    found = run(tmp_path / "d" / "queries.jsonl", tmp_path / "own", Spoken(), "--reply-emotion",
                "own-model")  # fmt: skip
    assert set(found["details"]["reply emotions"].values()) == {"SAD"}
    assert found["settings"]["reply emotion"] == "own-model"


def test_a_chat_judge_sees_words_labels_reply_and_emotion_and_no_lost_verdict_is_in_a_mean(
    tmp_path, monkeypatch
):
    def plan(body):
        lost = "I lost kite 1" in body["messages"][1]["content"]
        return ["no scores here"] if lost else [500, judged_scores(80)]

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    data, out = write_queries(tmp_path / "d"), tmp_path / "out"
    with serving(plan) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        found = run_judged(data, out, "--judge-prices", "1", "1")
        assert len(server.requests) == 3 * 2 + 3
        run_judged(data, out)
        assert len(server.requests) == 9
    shown = server.requests[0]["messages"][1]["content"]
    assert "Bless you, little one." in shown and "emotion SAD" in shown and "I lost kite" in shown
    assert "Emotion heard in the reply>not known" not in shown
    assert found["measures"]["label/all"] == {"value": 80, "count": 3, "low": 80, "high": 80}
    assert set(found["details"]["judge failed"]) == {"q1/label"}
    bill = found["details"]["judge"]
    assert (bill["calls"], bill["unparsable"]) == (6, 3) and bill["cost"] > 0
    assert found["settings"]["judge"] == "judge-x" and found["settings"]["judge seed"] == 3
    assert "Replies without a verdict" in (out / "report.html").read_text()


@pytest.mark.parametrize("thought, labels, text, kind, expected", [
    ("x", LABELS, "Yes.", "label", False), (None, LABELS, "Yes.", "label", True),
    ("x", LABELS, " ", "label", True), ("x", Labels(age="OLD"), "Yes.", "label", True),
    ("x", Labels(), "Yes.", "natural", False), (None, Labels(), "Yes.", "none", False),
])  # fmt: skip
def test_a_malformed_reply_lacks_what_its_kind_promises(thought, labels, text, kind, expected):
    assert malformed(thought, labels, text, kind) is expected


def write(folder: Path, *rows: object, name: str = "items.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_echat_style_reads_labels_wherever_they_stand(tmp_path):
    place = write(
        tmp_path,
        {"key": "a", "wav": "a.wav", "transcript": "hi", "labels": {"emotion": "happy"}},
        {"id": 7, "query_wav": "/x/b.wav", "q_txt": "ho", "age": "<OLD>", "gender": "FEMALE"},
        {"utt": "c c", "audio": "c.wav", "text": "he", "category": "Event",
         "extra": {"caption": "<COUGH>", "q_emotion": "angry"}},
    )  # fmt: skip
    first, second, third = read(place)[0]
    assert (first.category, first.labels, first.wav) == (
        "emotion", Labels(emotion="HAPPY"), tmp_path / "a.wav")  # fmt: skip
    assert (second.category, second.wav) == ("multi", Path("/x/b.wav"))
    assert [one.key for one in (first, second, third)] == ["a", "7", "c c"]
    assert second.labels == Labels(age="OLD", gender="FEMALE") and third.category == "event"
    assert third.labels == Labels(emotion="ANGER", event="COUGH")


def test_humdial_style_asks_the_last_user_turn_once_without_thinking(tmp_path):
    turns = [{"role": "user", "audio": "1.wav", "text": "one", "emotion": "sad"},
             {"role": "assistant", "text": "first answer", "audio": "r1.wav"},
             {"role": "user", "audio": "2.wav", "text": "two", "emotion": "happy"},
             {"role": "assistant", "text": "the reference, not shown"}]  # fmt: skip
    data = write(tmp_path, {"id": "d", "turns": turns})
    (item,), _ = read(data)
    assert (item.category, item.transcript, item.labels.emotion) == ("multi-turn", "two", "HAPPY")
    assert [(turn.text, turn.reply_text) for turn in item.earlier] == [("one", "first answer")]
    assert item.earlier_replies == (tmp_path / "r1.wav",)
    for name in ("1", "2", "r1"):
        write_wav(tmp_path / f"{name}.wav")
    assistant = Spoken()
    found = run(data, tmp_path / "out", assistant)["measures"]
    asked = [one for one in assistant.asked if one["task"] == "s2s"]
    assert len(asked) == 1 and asked[0]["source"].history[0].reply_text == "first answer"
    assert found["none/multi-turn"]["count"] == 1


def test_a_broken_line_is_among_what_failed_and_a_missing_or_empty_file_is_told(tmp_path):
    data = write_queries(tmp_path / "d")
    with data.open("ab") as file:
        file.write(b'{"torn\n{"key": "\xff"}\n')
    found = run(data, tmp_path / "out", Spoken())
    torn, other = found["failed"].values()
    assert "line 5: " in torn and "(not JSON)" in torn and "line 6: byte 10 is not UTF-8" in other
    assert found["measures"]["label/all"]["count"] == 4
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="no items in --data"):
        run(write(tmp_path / "empty"), tmp_path / "none", Spoken())
    with pytest.raises(InputError, match=r"exchanges\.jsonl: No such file"):
        read(tmp_path)


# The acoustic measure: manners are told by pitch, rate and level alone

NEUTRAL = Delivery(pitch_hz=150.0, letters_per_s=14.0, level_db=-25.0, range_semitones=5.0)
HEAR = Acoustic(NEUTRAL)


def changed(semitones: float, rate: float, level_db: float, wider: float = 0.0) -> Delivery:
    return Delivery(150 * 2 ** (semitones / 12), 14 * rate, -25 + level_db, 5 + wider)


@pytest.mark.parametrize("found, label", [
    (NEUTRAL, "NEUTRAL"),
    (changed(0.3, 0.98, -0.5), "NEUTRAL"),
    (changed(2.8, 1.15, 4.0, 1.0), "HAPPY"),        # as the reply voice sounds when cheerful
    (changed(-1.2, 0.80, -8.2), "SAD"),             # soft
    (changed(1.9, 1.05, 2.8, 0.5), "SURPRISE"),     # brisk
    (changed(3.5, 1.0, 1.0, 6.0), "SURPRISE"),      # high and very wide
    (changed(0.5, 1.25, 5.0), "ANGER"),
    (changed(3.0, 1.25, -1.0, -3.0), "FEAR"),
])  # fmt: skip
def test_each_manner_is_told_by_its_shifts(found, label):
    emotion = HEAR.of(found)
    assert emotion is not None and emotion.label == label


def speaker(wave):
    reply = SimpleNamespace(wave=wave, sample_rate_hz=spoken.RATE_HZ)
    return SimpleNamespace(reply=lambda words, task, seed: reply)


def test_the_neutral_is_what_the_voice_reads_plainly_and_one_without_voiced_sound_has_none():
    neutral = read_neutral(speaker(spoken.tone(120.0, 0.8, spoken.RATE_HZ)), "en")
    assert neutral.pitch_hz == pytest.approx(120, rel=0.1)
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, spoken.RATE_HZ).astype("f4"))
    for wave in (noise, None):
        with pytest.raises(InputError, match="take --reply-emotion own-model"):
            read_neutral(speaker(wave), "en")


def tone(pitch_hz: float, seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    harmonics = [np.sin(2 * np.pi * pitch_hz * k * times) / k for k in range(1, 9)]
    return (level * sum(harmonics)).astype(np.float32)


def test_pitch_is_found_pauses_do_not_slow_the_rate_loudness_is_told_and_a_glide_has_a_range():
    for pitch_hz in (95.0, 140.0, 220.0, 330.0):
        assert delivery(tone(pitch_hz), "a").pitch_hz == pytest.approx(pitch_hz, rel=0.03)
    speech, pause = tone(120.0), np.zeros(RATE_HZ, np.float32)
    plain = delivery(speech, "hello world")
    paused = delivery(np.concatenate([speech, pause]), "hello world")
    assert paused.letters_per_s == pytest.approx(plain.letters_per_s, rel=0.05)
    loud = delivery(2 * speech, "hello world")
    assert loud.level_db - plain.level_db == pytest.approx(6.02, abs=0.01)
    times = np.arange(RATE_HZ) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 * 2**times) / RATE_HZ      # an octave up in a second
    glide = sum(np.sin(k * phase) / k for k in range(1, 9)).astype(np.float32)
    assert delivery(glide, "a").range_semitones == pytest.approx(9.6, abs=0.5)
    assert delivery(tone(120.0), "a").range_semitones < 0.3
