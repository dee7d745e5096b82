"""Claims about the real command, killed and started again: the scores of one run, nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from osum_echat.paths import HOUSE, TINY
from tests.evaluation.judge_server import JudgeServer, scores, serving

QUERIES = 7                             # 4 are asked alone, 3 share a batch
LONGEST_S = 400


def write_queries(folder: Path) -> Path:
    """One question in many wordings: the judge sees another exhibit each time."""
    wav = (TINY / "samples" / "question.wav").resolve()
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps({
        "key": f"q{number}", "wav": str(wav), "transcript": f"question {number}",
        "labels": {"emotion": "SAD"},
    }) + "\n" for number in range(QUERIES)))  # fmt: skip
    return path


def start(data: Path, out: Path, judge: JudgeServer) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "osum_echat.evaluation", "echat_eval", "--model", str(TINY),
        "--data", str(data), "--out", str(out), "--thinking", "label", "--judge", "chat",
        "--judge-model", "judge-x", "--judge-workers", "1",
    ]  # fmt: skip
    environment = os.environ | {"OPENAI_BASE_URL": judge.url, "OPENAI_API_KEY": "none",
                                "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen(command, cwd=HOUSE, env=environment, stderr=subprocess.PIPE)


def finish(data: Path, out: Path, judge: JudgeServer) -> None:
    _, told = start(data, out, judge).communicate(timeout=LONGEST_S)
    assert (out / "report.html").exists(), told.decode()


def killed(data: Path, out: Path, judge: JudgeServer, when: Callable[[], bool]) -> None:
    """Start the command and kill it as soon as `when` says so."""
    process = start(data, out, judge)
    deadline = time.monotonic() + LONGEST_S
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before the kill"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def found(out: Path) -> dict:
    raw = json.loads((out / "scores.json").read_text())
    raw["details"]["judge"].pop("judge url")
    return {name: raw[name] for name in ("measures", "details", "failed", "items")}


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_as_one_run_and_no_answer_is_asked_for_twice(tmp_path):
    data = write_queries(tmp_path)

    def slow(body: dict) -> list[str]:
        time.sleep(0.3)                 # so that a kill may fall into a request
        return [scores(10 * (len(body["messages"][1]["content"]) % 9))]

    with serving(slow) as judge:
        finish(data, tmp_path / "whole", judge)
        assert len(judge.requests) == QUERIES
    out = tmp_path / "killed"
    with serving(slow) as judge:
        moments: list[Callable[[], bool]] = [
            lambda: (out / "settings.json").exists(),
            lambda: lines(out / "predictions.jsonl") >= 1,
            lambda: lines(out / "predictions.jsonl") >= 5,          # inside a batch's writing
            lambda: lines(out / "reply_emotions.jsonl") >= 3,
            lambda: lines(out / "judgements.jsonl") >= 1,
            lambda: len(judge.requests) >= 5,                       # while the judge thinks
        ]
        for moment in moments:
            killed(data, out, judge, moment)
        finish(data, out, judge)
        asked = Counter(json.dumps(one["messages"]) for one in judge.requests)
    assert found(out) == found(tmp_path / "whole")
    kept = [json.loads(line)["key"] for line in (out / "judgements.jsonl").read_text().splitlines()]
    assert len(kept) == len(set(kept)) == len(asked) == QUERIES
    # Only a request that the kill cut off, whose answer never came, is made once more.
    assert sum(asked.values()) - QUERIES <= 2
    predicted = [json.loads(line)["key"]
                 for line in (out / "predictions.jsonl").read_text().splitlines()]  # fmt: skip
    assert len(predicted) == len(set(predicted)) == QUERIES
