"""Claims about every run: a kill costs one item at most, and the scores are those of one run."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from osum_echat.errors import CheckpointError, InputError
from osum_echat.evaluation import __main__ as door
from osum_echat.evaluation.echat_eval import TIMED
from osum_echat.evaluation.runner import EMOTIONS, FAULTS_IN_A_ROW, Isolated, Model, digest_of
from osum_echat.files import KeyedJournal
from osum_echat.paths import TINY
from tests.evaluation.judge_server import scores as judged_scores
from tests.evaluation.judge_server import serving
from tests.evaluation.spoken import Spoken, model, scored, write_queries, write_wav
from tests.training.processes import kill_when
from tests.training.processes import run as run_to_end

QUERIES = 7                             # 4 are asked alone, 3 share a batch


def run(data, out, assistant, *more):
    return scored("echat_eval", data, out, assistant, *more)


def scores(out):
    """What two runs of the same items must share."""
    raw = json.loads((out / "scores.json").read_text())
    raw["details"]["judge"].pop("judge url", None)
    return {name: raw[name] for name in ("measures", "details", "failed", "items")}


def lines(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_a_run_stopped_anywhere_and_started_again_gives_the_scores_of_one_run(tmp_path):
    data = write_queries(tmp_path / "data")
    run(data, tmp_path / "whole", Spoken())
    for stop in (1, 5):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(data, out, Spoken(stop_after=stop))
        with (out / "predictions.jsonl").open("a") as file:
            file.write('{"key": "q3/natural", "tex')       # a line that the kill cut short
        again = Spoken()
        run(data, out, again)
        queries = [one for one in again.asked if one["task"] == "s2s_think"]
        assert len(queries) == 8 - stop and scores(out) == scores(tmp_path / "whole")


def test_half_a_batch_is_asked_again_in_the_same_company_and_its_first_half_is_kept(tmp_path):
    data = write_queries(tmp_path / "data", tuple(f"q{number}" for number in range(12)))
    whole, out = Spoken(), tmp_path / "out"
    run(data, tmp_path / "whole", whole)
    queries = [size for size in whole.batches if size > 1]
    assert queries == [12 - TIMED] * 2                      # label, natural
    run(data, out, Spoken())
    kept = lines(out)[:10]                                  # 8 timed ones, and 2 of a batch of 8
    (out / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    again = Spoken()
    run(data, out, again)
    assert [size for size in again.batches if size > 1] == queries
    assert lines(out)[:10] == kept and len(lines(out)) == 24
    assert scores(out) == scores(tmp_path / "whole")


@pytest.mark.parametrize("other", [["--seed", "1"], ["--greedy"], ["--recognizer", "both"],
                                   ["--talker", "none"], ["--dtype", "bf16"]])  # fmt: skip
def test_predictions_of_other_settings_are_not_mixed(tmp_path, other):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken(), "--limit", "1")
    with pytest.raises(InputError, match=f"another {other[0].strip('-')} .*choose another --out"):
        run(data, out, Spoken(), "--limit", "1", *other)
    run(data, out, Spoken(), "--limit", "1", *other, "--overwrite")


def test_what_failed_harms_no_other_is_listed_and_is_asked_three_times_over_all_runs(tmp_path):
    data, out = write_queries(tmp_path / "data", ("q0", "bad", "q2")), tmp_path / "out"
    for number, tries in enumerate((1, 2, 3, 3)):
        assistant = Spoken()
        found = run(data, out, assistant)
        assert set(found["failed"]) == {"bad/label", "bad/natural"} and found["items"] == 6
        assert found["measures"]["label/all"]["count"] == 2
        asked = {one["source"].user.audio.stem for one in assistant.asked
                 if one["task"] == "s2s_think"}  # fmt: skip
        assert asked == ({"q0", "bad", "q2"}, {"bad"}, {"bad"}, set())[number]
        last = {one["key"]: one["tries"] for one in lines(out) if "error" in one}
        assert last == {"bad/label": tries, "bad/natural": tries}
    assert "Items that failed" in (out / "report.html").read_text()


def test_another_plain_manner_is_compared_with_and_overwriting_forgets_what_was_heard(tmp_path):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken())
    run(data, out, Spoken(), "--neutral-style", "CALM")
    neutral, heard = (out / "neutral.jsonl").read_text(), (out / EMOTIONS).read_text()
    assert neutral.count('"en:CALM"') == 1 and neutral.count("\n") == 2
    assert heard.count("acoustic-v2:CALM:q1/label") == 1 and heard.count("q1/label") == 2
    run(data, out, Spoken(), "--seed", "5", "--overwrite")
    run(data, tmp_path / "fresh", Spoken(), "--seed", "5")
    for name in ("reply_emotions.jsonl", "neutral.jsonl"):
        assert (out / name).read_text() == (tmp_path / "fresh" / name).read_text()


def test_settings_and_versions_are_in_the_scores_no_key_is_and_keys_stand_once(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    out = tmp_path / "out"
    raw = run(write_queries(tmp_path / "data"), out, Spoken(), "--limit", "1")
    assert raw["settings"]["seed"] == 0 and raw["versions"]["torch"]
    assert not any("secret-key" in path.read_text(errors="ignore") for path in out.glob("*.*"))
    with pytest.raises(InputError, match="2 keys of --data stand there twice, as q0/label does"):
        run(write_queries(tmp_path / "twice", ("q0", "q0")), tmp_path / "other", Spoken())


@pytest.mark.parametrize("place", [0, 3 << 20, (8 << 20) - 1])
def test_another_model_in_the_same_place_is_told(tmp_path, place):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(8 << 20))
    before = digest_of(str(tmp_path))
    with weights.open("r+b") as file:
        file.seek(place - place % (1 << 20))
        file.write(bytes([1]) * (1 << 20))
    assert digest_of(str(tmp_path)) != before


@pytest.mark.parametrize("text, told", [
    ('{"key": "a"}\nnot json\n{"key": "b"}\n', "line 2: not JSON"),
    ('{"no": "key"}\n', "no object with a key"),
])  # fmt: skip
def test_a_broken_line_of_a_journal_is_told_and_nothing_is_thrown_away(tmp_path, text, told):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InputError, match=told):
        KeyedJournal(tmp_path / "a.jsonl")


@pytest.fixture()
def spoken(monkeypatch):
    monkeypatch.setattr(door, "model_of", lambda *_: model(Spoken()))


def test_all_runs_what_finds_its_data_and_tells_what_does_not(tmp_path, spoken, capsys):
    data = write_queries(tmp_path / "d")
    argv = ["all", "--data", f"echat_eval={data}", "--data", f"tiny_world={tmp_path}",
            "--data", f"latency={data}", "--out", str(tmp_path / "out")]  # fmt: skip
    assert door.main(argv) == 1         # tiny_world has no use for what was given to it
    printed = capsys.readouterr().out
    assert "voicebench: left out, no --data voicebench=PATH" in printed
    assert "tiny_world: left out: --data" in printed
    every = ["all", "--data", str(data), "--limit", "1", "--out", str(tmp_path / "every")]
    assert door.main(every) == 0 and "tts: left out: " in capsys.readouterr().out
    assert (tmp_path / "out/latency/report.html").exists()
    assert (tmp_path / "out/echat_eval/report.html").exists()
    assert door.main([*argv, "--data", f"echat_eval={tmp_path}"]) == 2
    assert "a second path for echat_eval" in capsys.readouterr().err


def test_failed_items_are_exit_code_1_and_what_cannot_be_read_2(
    tmp_path, spoken, capsys, monkeypatch
):
    data = write_queries(tmp_path / "d", ("bad", "bad2"))
    keys = ["echat_eval", "--data", str(data), "--out", str(tmp_path / "out"), "--thinking", "none"]
    assert door.main(keys) == 1 and "2 items failed" in capsys.readouterr().out

    def load() -> Spoken:
        raise CheckpointError("exp/none: no such model")

    monkeypatch.setattr(door, "model_of", lambda *_: Model("none", load))
    assert door.main([*keys[:-3], str(tmp_path / "other"), *keys[-2:]]) == 2
    assert "exp/none: no such model" in capsys.readouterr().err
    absent = str(tmp_path / "absent")
    assert door.main(["echat_eval", "--data", absent, "--out", str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == f"evaluation: {absent}: No such file or directory; see --help"


@pytest.mark.parametrize("suite", ["latency", "echat_eval", "understanding", "tts"])
def test_a_suite_that_can_brings_its_data(tmp_path, spoken, suite):
    out = tmp_path / "out"
    assert door.main([suite, "--limit", "2", "--out", str(out)]) == 0
    assert json.loads((out / "scores.json").read_text())["items"] >= 2


def test_a_sound_that_has_changed_is_asked_and_heard_anew(tmp_path):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken())
    write_wav(data.parent / "q1.wav", 300.0)
    again = Spoken()
    run(data, out, again)
    asked = [one["source"].user.audio.stem for one in again.asked if one["task"] == "s2s_think"]
    assert asked == ["q1", "q1"]
    heard = (out / "reply_emotions.jsonl").read_text()
    assert heard.count("q1/label") == 2 and heard.count("q2/label") == 1


def test_a_fault_that_is_none_of_the_data_ends_a_run_after_some():
    def broken(batch):
        raise RuntimeError("the kernel gave up")

    ask = Isolated(broken)
    with pytest.raises(RuntimeError, match="gave up"):
        for _ in range(FAULTS_IN_A_ROW):
            assert "gave up" in str(ask(["a"])[0])


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_as_one_run_and_no_answer_is_asked_for_twice(tmp_path):
    wav, data = (TINY / "samples" / "question.wav").resolve(), tmp_path / "queries.jsonl"
    rows = [{"key": f"q{number}", "wav": str(wav), "transcript": f"question {number}",
             "labels": {"emotion": "SAD"}} for number in range(QUERIES)]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def slow(body: dict) -> list[str]:
        time.sleep(0.3)                 # so that a kill may fall into a request
        return [judged_scores(10 * (len(body["messages"][1]["content"]) % 9))]

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "osum_echat.evaluation", "echat_eval", "--model", str(TINY),
                "--data", str(data), "--out", str(out), "--thinking", "label", "--judge", "chat",
                "--judge-model", "judge-x", "--judge-workers", "1"]  # fmt: skip

    whole, out = tmp_path / "whole", tmp_path / "killed"
    with serving(slow) as judge:
        settings = {"OPENAI_BASE_URL": judge.url, "OPENAI_API_KEY": "none"}
        run_to_end(command(whole), **settings)
        assert len(judge.requests) == QUERIES
        judge.requests.clear()
        moments: list[Callable[[], bool]] = [
            lambda: (out / "settings.json").exists(),
            lambda: count(out / "predictions.jsonl") >= 1,
            lambda: count(out / "predictions.jsonl") >= 5,          # inside a batch's writing
            lambda: count(out / "reply_emotions.jsonl") >= 3,
            lambda: count(out / "judgements.jsonl") >= 1,
            lambda: len(judge.requests) >= 5,                       # while the judge thinks
        ]
        for moment in moments:
            assert kill_when(command(out), moment, **settings)
        run_to_end(command(out), **settings)
        asked = Counter(json.dumps(one["messages"]) for one in judge.requests)
    assert scores(out) == scores(whole) and len(asked) == QUERIES
    # Only a request that the kill cut off, whose answer never came, is made once more.
    assert sum(asked.values()) - QUERIES <= 2
    for name in ("judgements.jsonl", "predictions.jsonl"):
        kept = [json.loads(line)["key"] for line in (out / name).read_text().splitlines()]
        assert len(kept) == len(set(kept)) == QUERIES
