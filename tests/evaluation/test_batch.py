"""Claims about batch jobs as a whole: the files, the exit codes, kills, several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from osum_echat.evaluation import batch, workers
from osum_echat.evaluation.parts import find_results
from osum_echat.paths import HOUSE
from tests.data.world import write_world
from tests.evaluation import answers
from tests.evaluation.answers import write_mixed_list, write_texts

Run = Callable[..., tuple[int, str, str]]
JOB = "from tests.evaluation.test_batch import main_with_answers as main; raise SystemExit(main())"


def main_with_answers() -> int:
    """The door of batches, with an assistant that answers at once in place of a model."""
    workers.answer_all = partial(workers.answer_all, load=answers.load)  # type: ignore[assignment]
    return batch.main(sys.argv[1:])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """As `main_with_answers`: exit code, standard output, standard error."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")       # so that what a job sets is taken back
        monkeypatch.delenv(name)
    quick = partial(workers.answer_all, load=answers.load)
    monkeypatch.setattr(workers, "answer_all", quick)

    def call(*options: object) -> tuple[int, str, str]:
        code = batch.main([str(option) for option in options])
        return code, *capsys.readouterr()

    return call


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


def test_a_list_becomes_results_texts_and_scores_in_its_order(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, told, _ = run("--data", write_texts(tmp_path / "a.list", 20), "--out", out)
    assert code == 0 and told.splitlines()[-1] == f"20 answered, 0 failed: {out}/results.jsonl"
    assert [one["key"] for one in results(out)] == [f"q{number:04d}" for number in range(20)]
    assert (out / "text.scp").read_text().splitlines()[3] == "q0003 ANSWER 3"
    assert json.loads((out / "scores.json").read_text())["tasks"]["<TEXT2TEXT>"]["answered"] == 20
    again = run("--data", tmp_path / "a.list", "--out", out)
    assert again[:2] == (0, told)


def test_failures_make_exit_code_1_and_every_line_is_kept(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, told, _ = run("--data", write_mixed_list(tmp_path), "--out", out)
    assert code == 1 and "16 answered, 3 failed" in told
    assert len(results(out)) == 19
    assert len((out / "text.scp").read_text().splitlines()) == 18    # one record has no key


def test_a_limit_can_grow(run: Run, tmp_path: Path) -> None:
    options = ("--data", write_texts(tmp_path / "a.list", 9), "--out", tmp_path / "out")
    assert run(*options, "--limit", 4)[0] == 0 and len(results(tmp_path / "out")) == 4
    assert run(*options)[0] == 0 and len(results(tmp_path / "out")) == 9
    assert run(*options, "--limit", 2)[0] == 0 and len(results(tmp_path / "out")) == 2


def test_overwriting_begins_anew(run: Run, tmp_path: Path) -> None:
    options = ("--data", write_texts(tmp_path / "a.list", 5), "--out", tmp_path / "out")
    run(*options)
    code, _, told = run(*options, "--seed", 3)
    assert code == 2 and "another seed (0, not 3)" in told and told.count("\n") == 1
    assert run(*options, "--seed", 3, "--overwrite")[0] == 0
    assert len(find_results(tmp_path / "out" / "parts")) == 5


def test_the_last_of_several_ranks_puts_all_together(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = ("--data", write_texts(tmp_path / "a.list", 30), "--out", out, "--batch-size", 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("2", "0", "1"):
        assert not (out / "results.jsonl").exists()
        monkeypatch.setenv("RANK", rank)
        assert run(*options)[0] == 0
    assert [one["index"] for one in results(out)] == list(range(30))
    code, _, told = run(*options, "--overwrite")
    assert code == 2 and "not under torchrun" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "absent.list"), "absent.list: no such file"),
        (("--data", "a.list", "--task", "s2x"), "task 's2x': not one of"),
        (("--data", "a.list", "--batch-size", "0"), "--batch-size 0: give 1 or more"),
        (("--data", "a.list", "--processes", "0"), "--processes 0: give 1 or more"),
        (("--data", "a.list", "--limit", "-1"), "--limit -1: give 1 or more"),
        (("--data", "a.list", "--language", "dutch"), "not one of auto, english, chinese"),
        (("--data", "a.list", "--out", "a.list"), "a.list"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_texts(Path("a.list"), 2)
    code, out, told = run(*options)
    assert (code, out) == (2, "") and message in told and told.count("\n") == 1, told


def test_a_model_that_cannot_be_loaded_is_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEAF", "1")
    data = write_texts(tmp_path / "a.list", 2)
    code, _, told = run("--data", data, "--out", tmp_path / "out", "--model", "exp/none")
    assert code == 2 and "exp/none: no such model" in told


def test_the_default_place_is_named_after_the_list(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()
    assert run("--data", write_texts(Path("raw/data.list"), 2))[0] == 0
    assert len(results(Path("exp/batch/raw-data"))) == 2


def test_progress_is_told_where_no_bar_is_watched(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(workers, "TELL_S", 0.0)
    with caplog.at_level("INFO", "osum_echat"):
        assert list(workers.told(range(3), 3)) == [0, 1, 2]
    assert "2 of 3 answered, about 0 min left" in caplog.text


def start(data: Path, out: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
    """A job in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    command = [sys.executable, "-c", JOB, "--data", str(data), "--out", str(out), *options]
    return subprocess.Popen(
        command, cwd=HOUSE, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def written(out: Path) -> int:
    """Lines that are in the parts so far."""
    return sum(path.read_bytes().count(b"\n") for path in (out / "parts").glob("*.jsonl"))


@pytest.mark.slow
def test_several_processes_make_the_same_as_one(tmp_path: Path) -> None:
    data = write_mixed_list(tmp_path)
    outs = [tmp_path / "one", tmp_path / "three"]
    for out, processes in zip(outs, ("1", "3"), strict=True):
        job = start(data, out, "--processes", processes, "--batch-size", "2")
        told, _ = job.communicate(timeout=300)
        assert job.returncode == 1 and "16 answered, 3 failed" in told
    assert len(list((outs[1] / "parts").iterdir())) == 3
    for name in ("results.jsonl", "text.scp"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


@pytest.mark.slow
def test_a_fault_of_every_process_is_told_once(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "a.list", 40)
    job = start(data, tmp_path / "out", "--processes", "2", DEAF="1")
    _, told = job.communicate(timeout=300)
    assert job.returncode == 2 and told.count("no such model") == 1


@pytest.mark.slow
def test_ranks_of_torchrun_share_a_list_on_a_real_model(
    model_directory: Path, tmp_path: Path
) -> None:
    lists = [write_world(tmp_path, 8)[name] for name in ("understand", "tts", "s2s")]
    data, out = tmp_path / "data.yaml", tmp_path / "out"
    data.write_text("".join(f"{path.stem}: {{path: {path}}}\n" for path in lists))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "osum_echat.evaluation.batch", "--data", str(data), "--out", str(out), "--model",
         str(model_directory), "--device", "cpu", "--batch-size", "3"],
        cwd=HOUSE, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "24 answered, 0 failed" in done.stdout
    assert [one["key"] for one in results(out)] == [f"u{number}" for number in range(8)] * 3
    assert len(list((out / "parts").iterdir())) == 2
    spoken = [one["wav"] for one in results(out) if one["wav"]]
    assert spoken and sorted(spoken) == sorted(f"wav/{path.name}" for path in out.glob("wav/*"))


@pytest.mark.slow
def test_killed_three_times_at_random_gives_every_result_once(tmp_path: Path) -> None:
    rng = random.Random(time.time_ns())
    data, out = write_texts(tmp_path / "a.list", 200), tmp_path / "out"
    options = ("--processes", "2", "--batch-size", "4")
    for _ in range(3):
        before = written(out)
        job = start(data, out, *options, NAP_S="0.15")
        while written(out) <= before and job.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.random())
        job.send_signal(signal.SIGKILL)     # its processes must end by themselves
        job.communicate(timeout=60)
    kept = written(out)
    assert 0 < kept < 200
    job = start(data, out, *options)
    told, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert "200 answered, 0 failed" in told
    assert [one["key"] for one in results(out)] == [f"q{number:04d}" for number in range(200)]
    lines = [json.loads(line) for path in (out / "parts").iterdir()
             for line in path.read_bytes().splitlines()]  # fmt: skip
    assert sorted(one["index"] for one in lines) == list(range(200))    # and none twice
