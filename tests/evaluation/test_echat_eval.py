"""Claims about EChat-eval: what is asked, what the judge sees, how kinds of thought compare."""

import json

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.echat_eval import malformed
from osum_echat.evaluation.start import run_suite
from osum_echat.records import Labels
from tests.evaluation.judge_server import scores as judged_scores
from tests.evaluation.judge_server import serving
from tests.evaluation.spoken import LABELS, Spoken, arguments, model, write_queries, write_wav


def run(data, out, assistant, *more):
    run_suite("echat_eval", arguments("echat_eval", data, out, *more), model(assistant))
    return json.loads((out / "scores.json").read_text())


def test_both_kinds_of_thought_are_asked_and_stand_in_one_table(tmp_path):
    found = run(write_queries(tmp_path / "d"), tmp_path / "out", Spoken())["measures"]
    assert found["label/all"]["count"] == found["natural/all"]["count"] == 4
    assert found["natural/thought length"]["value"] == len("I hear a boy.")
    assert found["label/malformed"]["value"] == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Kinds of thought" in report
    assert "| this model, natural thinking, by rules-v1 |" in report
    assert "OSUM-EChat (paper) | 58.00 | 63.10" in report


def test_a_model_that_thinks_one_way_is_asked_that_way(tmp_path):
    assistant = Spoken()
    assistant.thinking = "natural"
    found = run(write_queries(tmp_path / "d"), tmp_path / "out", assistant)["measures"]
    assert "natural/all" in found and "label/all" not in found


def test_a_chat_judge_sees_words_labels_reply_and_the_emotion_heard(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with serving(lambda body: [500, judged_scores(80)]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        found = run(write_queries(tmp_path / "d"), tmp_path / "out", Spoken(), "--judge", "chat",
                    "--judge-model", "judge-x", "--judge-seed", "3", "--thinking", "label",
                    "--judge-prices", "1", "1")  # fmt: skip
        requests = len(server.requests)
        assert requests == 8
        run(tmp_path / "d" / "queries.jsonl", tmp_path / "out", Spoken(), "--judge", "chat",
            "--judge-model", "judge-x", "--judge-seed", "3", "--thinking", "label")  # fmt: skip
        assert len(server.requests) == requests
    shown = server.requests[0]["messages"][1]["content"]
    assert "Bless you, little one." in shown and "emotion SAD" in shown and "I lost kite" in shown
    assert "Emotion heard in the reply>not known" not in shown
    assert found["measures"]["label/all"]["value"] == 80
    assert found["details"]["judge"]["calls"] == 4 and found["details"]["judge"]["cost"] > 0
    assert found["settings"]["judge"] == "judge-x" and found["settings"]["judge seed"] == 3


def test_replies_without_a_verdict_are_listed_and_in_no_mean(tmp_path, monkeypatch):
    def plan(body):
        lost = "I lost kite 1" in body["messages"][1]["content"]
        return ["no scores here"] if lost else [judged_scores(60)]

    with serving(plan) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        found = run(write_queries(tmp_path / "d"), tmp_path / "out", Spoken(), "--judge", "chat",
                    "--judge-model", "judge-x", "--thinking", "label")  # fmt: skip
    assert found["measures"]["label/all"]["count"] == 3
    assert found["measures"]["label/all"]["value"] == 60
    assert set(found["details"]["judge failed"]) == {"q1/label"}
    assert found["details"]["judge"]["unparsable"] == 3
    assert "Replies without a verdict" in (tmp_path / "out" / "report.html").read_text()


def test_a_turn_with_history_is_asked_once_without_thinking(tmp_path):
    folder = tmp_path / "d"
    turns = [{"role": "user", "audio": "a.wav", "text": "I have a cat"},
             {"role": "assistant", "text": "What is it called?"},
             {"role": "user", "audio": "b.wav", "text": "Guess", "emotion": "happy"}]  # fmt: skip
    for name in "ab":
        write_wav(folder / f"{name}.wav")
    (folder / "talk.jsonl").write_text(json.dumps({"id": "t", "turns": turns}) + "\n")
    assistant = Spoken()
    found = run(folder / "talk.jsonl", tmp_path / "out", assistant)["measures"]
    asked = [one for one in assistant.asked if one["task"] == "s2s"]
    assert len(asked) == 1 and asked[0]["source"].history[0].reply_text == "What is it called?"
    assert found["none/multi-turn"]["count"] == 1


def test_the_own_model_can_hear_the_emotion_and_is_named(tmp_path):
    found = run(write_queries(tmp_path / "d"), tmp_path / "out", Spoken(),
                "--reply-emotion", "own-model")  # fmt: skip
    assert set(found["details"]["reply emotions"].values()) == {"SAD"}
    assert found["settings"]["reply emotion"] == "own-model"


def test_a_chat_judge_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(InputError, match="--judge-model"):
        run(write_queries(tmp_path / "d"), tmp_path / "out", Spoken(), "--judge", "chat")


@pytest.mark.parametrize("thought, labels, text, kind, expected", [
    ("x", LABELS, "Yes.", "label", False), (None, LABELS, "Yes.", "label", True),
    ("x", LABELS, " ", "label", True), ("x", Labels(age="OLD"), "Yes.", "label", True),
    ("x", Labels(), "Yes.", "natural", False), (None, Labels(), "Yes.", "none", False),
])  # fmt: skip
def test_a_malformed_reply_lacks_what_its_kind_promises(thought, labels, text, kind, expected):
    assert malformed(thought, labels, text, kind) is expected
