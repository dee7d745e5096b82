"""Claims about batch jobs: the files, the exit codes, kills, several processes, what is redone."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import soundfile

from osum_echat.errors import InputError
from osum_echat.evaluation import batch
from osum_echat.evaluation.batch import Rank, answer, find_results
from osum_echat.evaluation.understanding import UtteranceList
from osum_echat.files import Journal
from osum_echat.paths import FAKE_DATA, HOUSE
from osum_echat.ray_pool import LostError, Pool, as_done
from tests.data.world import write_list, write_world
from tests.evaluation import answers
from tests.evaluation.answers import Answers, job_of, write_mixed_list, write_texts
from tests.ray_work import work

ALONE = Rank()
Run = Callable[..., tuple[int, str, str]]
JOB = "from tests.evaluation.test_batch import main_with_answers as main; raise SystemExit(main())"


def main_with_answers() -> int:
    """The door of batches, with an assistant that answers at once in place of a model."""
    batch.load_assistant = answers.load  # type: ignore[assignment]
    return batch.main(sys.argv[1:])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """As `main_with_answers`: exit code, standard output, standard error."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")       # so that what a job sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(batch, "load_assistant", answers.load)

    def call(*options: object) -> tuple[int, str, str]:
        code = batch.main([str(option) for option in options])
        return code, *capsys.readouterr()

    return call


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


def test_a_list_becomes_results_texts_and_scores_in_its_order(run: Run, tmp_path: Path) -> None:
    out, data = tmp_path / "out", write_texts(tmp_path / "a.list", 20)
    data.write_text(data.read_text().replace("q0000", r"q\n0"))    # a key of two lines
    code, told, _ = run("--data", data, "--out", out)
    assert code == 0 and told.splitlines()[-1] == f"20 answered, 0 failed: {out}/results.jsonl"
    assert [one["key"] for one in results(out)][1:] == [f"q{n:04d}" for n in range(1, 20)]
    texts = (out / "text.scp").read_text().splitlines()
    assert (texts[0], texts[3]) == ("q 0 ANSWER 0", "q0003 ANSWER 3")
    assert json.loads((out / "scores.json").read_text())["tasks"]["<TEXT2TEXT>"]["answered"] == 20
    assert run("--data", data, "--out", out)[:2] == (0, told)
    for limit in (4, 9, 2):
        assert run("--data", data, "--out", out, "--limit", limit)[0] == 0
        assert len(results(out)) == limit


def test_what_was_asked_and_what_came_is_kept_of_every_line(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, told, _ = run("--data", write_mixed_list(tmp_path), "--out", out, "--batch-size", 4)
    assert code == 1 and "16 answered, 3 failed" in told
    found = results(out)
    assert [one["index"] for one in found] == list(range(19))
    assert len((out / "text.scp").read_text().splitlines()) == 18    # one record has no key
    errors = {one["key"]: one["error"] for one in found if one["error"] is not None}
    assert errors.pop(None).startswith("not JSON") and errors == {
        "bad-u2": "bad-u2: not audio", "crash-u1": "RuntimeError: the kernel gave up"}  # fmt: skip
    heard, spoken = found[0], found[9]
    assert heard["reference"] == "i lost my kite<CHILD><MALE>" and heard["wav"] is None
    assert heard["reference_heard"] == "i lost my kite" and heard["timings"]["total_s"] == 0.2
    assert heard["reference_labels"]["age"] == "CHILD" == heard["labels"]["age"]
    assert (spoken["task"], spoken["wav"]) == ("<TEXT2TOKEN>", "wav/000009-k8-u2.wav")
    samples, rate = soundfile.read(out / spoken["wav"])
    assert rate == 22_050 and len(samples) == 100 + len(spoken["text"])


@pytest.mark.parametrize("world", [2, 5])
def test_n_ranks_give_what_one_process_does_and_the_last_puts_all_together(
    run, tmp_path, monkeypatch, world
):
    data, whole, out = write_mixed_list(tmp_path), tmp_path / "whole", tmp_path / "parted"
    assert run("--data", data, "--out", whole, "--batch-size", 3)[0] == 1       # three failed
    options = ("--data", data, "--out", out, "--batch-size", 3)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in reversed(range(world)):
        assert not (out / "results.jsonl").exists()
        monkeypatch.setenv("RANK", str(rank))
        assert run(*options)[0] == (1 if rank == 0 else 0)
    assert len(list((out / "parts").iterdir())) == world and results(out) == results(whole)
    for wav in whole.glob("wav/*"):
        assert (out / "wav" / wav.name).read_bytes() == wav.read_bytes()
    code, _, told = run(*options, "--overwrite")
    assert code == 2 and "not under torchrun" in told


@pytest.mark.parametrize("options, message", [
    (("--data", "absent.list"), "absent.list: no such file"),
    (("--data", "a.list", "--task", "s2x"), "task 's2x': not one of"),
    (("--data", "a.list", "--batch-size", "0"), "--batch-size 0: give 1 or more"),
    (("--data", "a.list", "--out", "a.list"), "a.list"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_texts(Path("a.list"), 2)
    code, out, told = run(*options)
    assert (code, out) == (2, "") and message in told and told.count("\n") == 1, told


def start(data: Path, out: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
    """A job in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    command = [sys.executable, "-c", JOB, "--data", str(data), "--out", str(out), *options]
    return subprocess.Popen(command, cwd=HOUSE, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def written(out: Path) -> int:
    """Lines that are in the parts so far."""
    return sum(path.read_bytes().count(b"\n") for path in (out / "parts").glob("*.jsonl"))


@pytest.mark.slow
def test_killed_three_times_at_random_gives_every_result_once(tmp_path: Path) -> None:
    rng = random.Random(time.time_ns())
    data, out = write_texts(tmp_path / "a.list", 600), tmp_path / "out"
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
    assert 0 < kept < 600
    job = start(data, out, *options)
    told, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert "600 answered, 0 failed" in told
    assert [one["key"] for one in results(out)] == [f"q{number:04d}" for number in range(600)]
    lines = [json.loads(line) for path in (out / "parts").iterdir()
             for line in path.read_bytes().splitlines()]  # fmt: skip
    assert sorted(one["index"] for one in lines) == list(range(600))    # and none twice


@pytest.mark.slow
def test_processes_of_this_machine_share_units_and_a_lost_one_is_told(tmp_path: Path) -> None:
    start, pool = partial(work, tmp_path), Pool(None, 2)
    assert sorted(as_done(pool, start, "abcd")) == list(enumerate("ABCD"))
    with pytest.raises(InputError, match=r"^bad word; say another$"):
        list(as_done(pool, start, ["a", "bad"]))
    with pytest.raises(LostError, match=r"ended from outside .* what is done is kept"):
        list(as_done(pool, start, ["a", "end"]))


def records(job: Namespace) -> list[dict[str, Any]]:
    found = find_results(job.out)
    return [found[index] for index in sorted(found)]


def steps(job: Namespace, rank: Rank = ALONE, load: Any = answers.load) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "load_assistant", load)
        yield from answer(job, rank, UtteranceList(job.data, job.limit))


def finish(job: Namespace, rank: Rank = ALONE) -> Answers:
    """Answer a share to its end; the assistant that was asked."""
    used = Answers()
    assert all(steps(job, rank, lambda job: used))
    return used


def test_another_task_can_be_asked_of_all_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    data = write_mixed_list(tmp_path)
    job = job_of(data, tmp_path / "out", task="asr")
    finish(job)
    found = [one for one in records(job) if one["key"]]
    assert {one["task"] for one in found} == {"<TRANSCRIBE>"}
    # the words of an understanding record stand in its text, those of a dialogue beside it
    assert found[0]["reference_heard"] == "i lost my kite"
    assert found[-1]["reference_heard"] == "we won" and found[-1]["reference"] == "Well done."
    data.write_text(data.read_text().replace("<TRANSCRIBE> <AGE> <GENDER>", "<SING>", 1))
    job = job_of(data, tmp_path / "unknown")
    finish(job)
    assert "task '<SING>': not one of" in records(job)[0]["error"]


@pytest.mark.parametrize("cut", [0, 1, 40, 200])
def test_a_cut_part_is_answered_again_from_there_and_nothing_twice(tmp_path: Path, cut: int):
    job = job_of(write_texts(tmp_path / "a.list", 40), tmp_path / "out", batch_size=4)
    assert len(list(islice(steps(job), 10))) == 10
    part = (job.out / "parts") / "part-00000.jsonl"
    part.write_bytes(part.read_bytes()[: -cut or None])
    kept = set(find_results(job.out))
    asked = [key for batch in finish(job).asked for key in batch]
    assert len(asked) == 40 - len(kept) and not {int(key[1:]) for key in asked} & kept
    lines = [json.loads(line)["index"] for line in part.read_bytes().splitlines()]
    assert sorted(lines) == list(range(40))


def test_failures_are_answered_again_three_times_in_all_or_when_asked_to(tmp_path: Path) -> None:
    job = job_of(write_mixed_list(tmp_path), tmp_path / "out")
    asked = [sorted({key for batch in finish(job).asked for key in batch}) for _ in range(3)]
    assert len(asked[0]) == 18 and asked[1] == asked[2] == ["bad-u2", "crash-u1"]

    def load(job: Namespace) -> Answers:
        raise AssertionError("loaded for nothing")

    assert list(steps(job, load=load)) == []
    job.retry = True
    again = {key for batch in finish(job).asked for key in batch}
    assert again == {"bad-u2", "crash-u1"} and len(records(job)) == 19


def test_a_sound_that_is_there_now_or_another_is_answered_anew(run: Run, tmp_path: Path) -> None:
    data, out = write_world(tmp_path, 4)["understand"], tmp_path / "out"
    keys = ("--data", data, "--out", out, "--task", "asr")
    assert run(*keys)[0] == 0
    first = results(out)
    wav = Path(next(data.parent.rglob("*.wav")))
    said = [json.loads(line) for line in data.read_text().splitlines()]
    mine = {one["key"] for one in said if Path(one["wav"]).name == wav.name}
    os.utime(wav, (1, 1))
    before = written(out)
    assert run(*keys)[0] == 0 and written(out) - before == len(mine) > 0
    assert results(out) == first and not first[0].keys() & {"sounds", "tries", "asked"}


def test_a_lost_line_is_exit_code_1_and_nothing_that_can_be_answered_2(run, tmp_path):
    rows = [{"wav": "a.wav", "text": "hello"}, {"wav": "b.wav"}]    # told before the list is read
    data = write_list(tmp_path / "queries.jsonl", rows)
    code, told, _ = run("--data", data, "--out", tmp_path / "queries")
    assert code == 1 and "1 answered" in told
    data = write_list(tmp_path / "a.list", [{"key": "bad", "wav": "x.wav", "task": "<TEXT2TEXT>",
                                             "txt": "a", "extra": {"question": "b"}}])  # fmt: skip
    code, _, told = run("--data", data, "--out", tmp_path / "out")
    assert code == 2 and "nothing was answered: 1 failed" in told
    assert len(results(tmp_path / "out")) == 1


@pytest.mark.parametrize("change, named", [
    (("--model", "exp/other"), r'another model, model files (".+", not "exp/other")'),
    (("--seed", 2), "another seed (0, not 2)"),
    (("--greedy", "--task", "t2t"), "another task, greedy"), (("--no-speak",), "another speak"),
])  # fmt: skip
def test_another_job_does_not_go_on_in_the_same_place(run, tmp_path, change, named):
    keys = ("--data", write_texts(tmp_path / "a.list", 3), "--out", tmp_path / "out")
    run(*keys)
    before = (tmp_path / "out" / "settings.json").read_bytes()
    assert run(*keys, "--batch-size", 1, "--device", "cpu", "--language", "english")[0] == 0
    assert (tmp_path / "out" / "settings.json").read_bytes() == before
    code, _, told = run(*keys, *change)
    assert code == 2 and re.search(named.replace("(", r"\(").replace(")", r"\)"), told), told


def test_a_model_list_or_tar_that_has_changed_is_another_job(run: Run, tmp_path: Path) -> None:
    keys = ("--data", write_texts(tmp_path / "a.list", 3), "--out", tmp_path / "out", "--model",
            tmp_path / "model")  # fmt: skip
    (tmp_path / "model").mkdir()
    for text, told in (("a: 1\n", ""), ("a: 2\n", "holds answers of another model files")):
        (tmp_path / "model" / "model.yaml").write_text(text)
        assert told in run(*keys)[2]
    (tmp_path / "model" / "model.yaml").write_text("a: 1\n")
    write_texts(tmp_path / "a.list", 4)
    assert "another lists" in run(*keys)[2]
    (tmp_path / "out" / "settings.json").write_text("{")
    assert "settings.json: not read" in run(*keys)[2]
    shutil.copytree(FAKE_DATA / "shard", tmp_path / "shard")
    keys = ("--data", tmp_path / "shard", "--out", tmp_path / "tars", "--task", "asr")
    assert run(*keys)[0] == 0
    os.utime(next((tmp_path / "shard").glob("*.tar")), (1, 1))
    code, _, told = run(*keys)
    assert code == 2 and "holds answers of another tars" in told


def test_overwriting_removes_what_a_job_made_and_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    others = ("notes.txt", "wav/mine.wav", "parts/other.txt")
    for name in (*others, "wav/000001-a.wav", "parts/part-00001.jsonl"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    assert run("--data", write_texts(tmp_path / "a.list", 3), "--out", out, "--overwrite")[0] == 0
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == {*others, ".lock", "settings.json", "results.jsonl", "text.scp", "scores.json",
                    "parts/part-00000.jsonl"}  # fmt: skip


def write(out: Path, rank: int, *records: dict[str, object]) -> None:
    with Journal(out / "parts" / f"part-{rank:05d}.jsonl") as part:
        part.write(records)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_results_of_all_parts_are_found_and_an_answer_counts_before_a_failure(tmp_path, order):
    both = ({"index": 4, "error": "failed"}, {"index": 4, "error": None})
    write(tmp_path, 1, {"index": 3, "error": None}, both[order[0]])
    write(tmp_path, 0, both[order[1]])
    found = find_results(tmp_path)
    assert sorted(found) == [3, 4] and found[4]["error"] is None
    write(tmp_path, 0, {"index": 3, "error": "gone", "asked": 2})
    write(tmp_path, 2, {"index": 3, "error": "earlier"})
    assert find_results(tmp_path)[3]["error"] == "gone"         # what was asked last counts
    with (tmp_path / "parts" / "part-00000.jsonl").open("ab") as file:
        file.write(b'{"key": "a"}\n')
    with pytest.raises(InputError, match="line 3: no result"):
        find_results(tmp_path)
