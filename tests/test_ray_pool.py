"""Claims about work on a Ray cluster: each unit once, whatever workers are lost on the way."""

import json
import os
import signal
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from osum_echat import ray_pool
from osum_echat.errors import InputError
from osum_echat.evaluation import __main__ as door
from osum_echat.evaluation import batch, runner
from osum_echat.ray_pool import Pool, as_done
from tests.common_utils.reading import shards, write_noise, write_raw
from tests.evaluation import answers
from tests.evaluation.answers import write_mixed_list
from tests.evaluation.spoken import Spoken, arguments, model, write_queries
from tests.ray_work import work

ray = pytest.importorskip("ray", reason="Ray is installed apart: make test-ray")


@pytest.fixture(scope="session", autouse=True)
def cluster():
    """One for all tests: its start takes seconds."""
    for name, value in ray_pool.SETTINGS.items():
        os.environ.setdefault(name, value)
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level=ray_pool.ERROR)
    yield
    ray.shutdown()


class Dying(answers.Answers):
    """Two batches end their worker the first time that they are asked."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out

    def reply_many(self, sources: Sequence[Any], **options: Any) -> list[Any]:
        for key in ("k11-u5", "k14-u2"):
            mark = self.out / f"{key}.killed"
            if any(one.key == key for one in sources) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().reply_many(sources, **options)


def load_dying(job: Namespace) -> Dying:
    return Dying(job.out)


def results(out: Path) -> bytes:
    return (out / "results.jsonl").read_bytes()


@pytest.mark.slow
def test_a_batch_job_loses_two_workers_and_no_utterance(tmp_path, monkeypatch):
    keys = ["--data", str(write_mixed_list(tmp_path)), "--batch-size", "2"]
    monkeypatch.setattr(batch, "load_assistant", answers.load)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert batch.main([*keys, "--out", str(whole)]) == 1        # three cannot be answered
    monkeypatch.setattr(batch, "load_assistant", load_dying)
    assert batch.main([*keys, "--out", str(out), "--ray", "local", "--processes", "2"]) == 1
    assert len(list(out.glob("*.killed"))) == 2 and results(out) == results(whole)
    part = out / "parts" / "part-00000.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(19))
    for wav in whole.glob("wav/*"):
        assert (out / "wav" / wav.name).read_bytes() == wav.read_bytes()
    part.write_bytes(b"".join(lines[:9]))                       # begun there, finished here
    assert batch.main([*keys, "--out", str(out)]) == 1 and results(out) == results(whole)


@pytest.mark.slow
def test_shards_of_a_cluster_are_those_of_one_process(tmp_path):
    rows = [{"key": key, "wav": f"{key}.wav", "txt": key} for key in "abcde"]
    for row in rows[:-1]:
        write_noise(tmp_path / row["wav"])
    raw = write_raw(tmp_path, rows)
    here = shards(raw, tmp_path / "here", "--per-tar", "2")
    there = shards(raw, tmp_path / "there", "--per-tar", "2", "--ray", "local", "--workers", "1")
    assert (there.written, there.dropped) == (here.written, here.dropped) == (
        4, {"audio cannot be used": 1}
    )  # fmt: skip
    for path in (tmp_path / "here").iterdir():
        if not path.name.startswith("."):
            assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_predictions_of_a_cluster_are_those_of_one_process(tmp_path):
    data, found = write_queries(tmp_path / "data", ("q0", "bad", "q2")), []
    for name, more in (("here", ()), ("there", ("--ray", "local", "--workers", "1"))):
        options = arguments("echat_eval", data, tmp_path / name, *more)
        told, failed = door.run_suite("echat_eval", options, model(Spoken()))
        lines = (tmp_path / name / runner.PREDICTIONS).read_text().splitlines()
        found.append((told.replace(str(tmp_path / name), ""), failed, sorted(lines)))
    assert found[0] == found[1] and found[0][1] == 2


def test_a_lost_worker_costs_no_unit_and_an_error_is_told(tmp_path, monkeypatch):
    start, pool = partial(work, tmp_path), Pool("local", 1)
    words = [*(f"word {number}" for number in range(10)), "end once", "last"]
    done = []
    with pytest.raises(InputError, match=r"^bad word; say another$"):
        done.extend(as_done(pool, start, [*words, "bad"]))
    assert done == list(enumerate(word.upper() for word in words))
    assert len(list(tmp_path.glob("*.started"))) == 2           # each worker loads once
    monkeypatch.setattr(ray_pool, "MOST_LOST", 1)
    with pytest.raises(InputError, match=r"workers were lost over unit 2 .*what is done is kept"):
        list(as_done(pool, start, ["a", "end"]))


def test_what_a_cluster_cannot_give_is_told():
    with pytest.raises(InputError, match="no machine of the Ray cluster has a GPU"):
        next(as_done(Pool("local", None, "cuda"), partial(work, Path()), ["a"]))
    with pytest.raises(InputError, match="device cuda:1: with --ray give"):
        Pool("local", None, "cuda:1")
