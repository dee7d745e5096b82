"""Claims about endless batches: order, layout, resume, drops, and the processes that make them."""

import json
import multiprocessing
import os
import random
import signal
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from osum_echat.data import loader as loaders
from osum_echat.data.batching import LAYOUTS, EpochSampler, Rows, within_frames
from osum_echat.data.loader import DataSettings, ListSettings, Loader, open_sources
from osum_echat.data.prepare import Preparer, PrepareSettings
from osum_echat.errors import DataError
from osum_echat.sequence import Batch, Sequence
from osum_echat.tasks import Prompts
from tests.data.world import CODES, write_list, write_world
from tests.letters import letter_vocab

PREPARER = Preparer(PrepareSettings(thinking="both", template="english", speech_per_text=0.0),
                    letter_vocab(CODES), 80, Prompts({}))  # fmt: skip


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def loader(
    paths: dict[str, Path], ranks: tuple[int, int] = (0, 1), report: Path | None = None,
    **changes: Any,
) -> Loader:  # fmt: skip
    names = [name for name in ("tts", "s2s_think", "t2t") if name in paths] or paths
    entries = {name: ListSettings(str(paths[name])) for name in names}
    chosen = {"lists": entries, "row_tokens": 600, "rows": 2, "window": 7, "prefetch": 0, **changes}
    settings = DataSettings(**chosen)
    return Loader(open_sources(settings), PREPARER, settings, 5, *ranks, report)


def keys(batch: Batch) -> list[tuple[str, str]]:
    return [pair for row, tasks in zip(batch.keys, batch.tasks, strict=True)
            for pair in zip(row, tasks, strict=True)]  # fmt: skip


def one_epoch(source: Loader) -> list[Batch]:
    epoch, batches = source.epoch, []
    while source.epoch == epoch:
        batches.append(next(source))
    return batches


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_an_epoch_holds_everything_once(lists, layout):
    seen = [pair for batch in one_epoch(loader(lists, layout=layout)) for pair in keys(batch)]
    tasks = ("s2s_think", "t2t", "tts")
    assert sorted(seen) == sorted((f"u{one}", task) for one in range(8) for task in tasks)


def test_epochs_differ_and_seeds_repeat(lists):
    first, again = loader(lists), loader(lists)
    orders = [[keys(batch) for batch in one_epoch(one)] for one in (first, first, again)]
    assert orders[0] == orders[2] and orders[0] != orders[1]


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same, to the last digit."""
    names = ("keys", "tasks", "spans", "ids", "targets", "valid", "positions", "joint", "segments",
             "mel_lengths", "mels")  # fmt: skip
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.fixture(scope="module")
def told(lists):
    """An epoch and a bit, made in line: each batch and the state after it."""
    source = loader(lists)
    return [(source.state_dict(), batch) for batch in islice(source, 14)]


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 2), (1, 1), (1, 3), (3, 1)])
def test_a_resume_at_any_step_is_exact_by_any_number_of_workers(lists, told, workers, prefetch):
    assert told[-1][0]["epoch"] == 1
    source = loader(lists, workers=workers, prefetch=prefetch)
    for start in range(len(told)):
        if start:
            source.load_state_dict(told[start - 1][0])
        rest = told[start:] if start == 0 else told[start : start + 2]
        for state, expected in rest:
            assert same(next(source), expected), (start, state)
            assert source.state_dict() == state
    source.close()


@pytest.mark.slow  # torch looks every five seconds
def test_a_killed_worker_is_an_error_not_a_wait(lists):
    source = loader(lists, workers=1, prefetch=1)
    next(source)
    (process,) = multiprocessing.active_children()
    os.kill(process.pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"worker.* exited unexpectedly.*lower data\.workers"):
        for _ in range(50):
            next(source)
    source.close()


@pytest.mark.parametrize("ending", ["close", "forget"])
def test_workers_end_with_their_loader(lists, ending):
    chance = torch.get_rng_state()
    source = loader(lists, workers=2)
    next(source)
    assert torch.equal(torch.get_rng_state(), chance)  # that of the training
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    if ending == "close":
        source.close()
    del source
    assert not any(process.is_alive() for process in processes)


def test_drops_are_written_to_a_report_that_a_resume_goes_on_with(lists, tmp_path):
    good = [json.loads(line) for line in lists["t2t"].read_text().splitlines()]
    bad = [{"key": f"b{one}", "txt": "x", "task": "<TEXT2TOKEN>"} for one in range(4)]
    path = write_list(tmp_path / "mixed.list", good + bad)
    report = tmp_path / "out" / "drops.json"
    whole, other = (loader({"mixed": path}, report=report, window=3) for _ in range(2))
    for _ in range(2):
        next(whole)
    other.load_state_dict(whole.state_dict())
    while other.epoch == 0:
        next(other)
    found = json.loads(report.read_text())
    assert (found["read"], found["dropped"]) == (12, 4)
    assert found["drops"][0]["reason"] == "no speech tokens"
    assert [one[:3] for one in sorted(found["drops"][0]["first"])] == ["b0;", "b1;", "b2;", "b3;"]


def test_lists_of_broken_or_unusable_records_are_an_error(tmp_path):
    path = tmp_path / "broken.list"
    path.write_text('{"key": "a"}\n' * 30)
    source = loader({"broken": path}, bad_in_a_row=20)
    with pytest.raises(DataError, match=r"20 records in a row are broken.*broken\.list"):
        next(source)
    bad = write_list(tmp_path / "bad.list", [{"key": "b", "txt": "x", "task": "<TEXT2TOKEN>"}])
    for prefetch in (0, 1):
        source = loader({"bad": bad}, prefetch=prefetch)
        with pytest.raises(DataError, match="none of 1 utterances can be used; bad: no speech"):
            next(source)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_odd_is_used_and_written_and_what_fails_late_costs_its_row(
    lists, tmp_path, workers
):
    rows = [json.loads(line) for line in lists["understand"].read_text().splitlines()]
    for row in rows:
        row["wav"] = str(lists["s2t"].parent / row["wav"])
    soundfile.write(tmp_path / "silent.wav", np.zeros(8_000), 16_000)
    rows[1]["wav"] = str(tmp_path / "silent.wav")
    rows[2]["extra"]["gender"] = "<FEMAL>"
    rows[3]["txt"] = rows[3]["txt"].replace("<CHILD>", "<CHLD>")
    soundfile.write(tmp_path / "cut.flac", *soundfile.read(rows[7]["wav"]))
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])  # its header is whole
    rows[7]["wav"] = str(tmp_path / "cut.flac")
    path = write_list(tmp_path / "odd.list", rows)
    report = tmp_path / "drops.json"
    source = loader({"odd": path}, report=report, workers=workers)
    seen = [key for batch in one_epoch(source) for key, _ in keys(batch)]
    assert sorted(seen) == [f"u{one}" for one in range(7)]
    assert source.drops.counts == {("odd", "audio cannot be used"): 1}
    source.close()
    found = {one["reason"]: one["first"] for one in json.loads(report.read_text())["noted"]}
    assert found == {
        "digital silence": ["u1: 0.5 s of it"],
        "unknown label of gender": ["u2: 'FEMAL', not one of FEMALE, MALE"],
        "unknown label of age": ["u3: 'CHLD', not one of ADULT, CHILD, OLD"],
    }


@given(lists=st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=6),
                                st.floats(0, 3)), min_size=1, max_size=3), seed=st.integers(0, 5),
       shuffle=st.booleans())  # fmt: skip
def test_an_epoch_visits_what_the_weights_say(lists, seed, shuffle):
    edges = [(np.concatenate([[0], np.cumsum(sizes)]), weight) for sizes, weight in lists]
    order = EpochSampler(edges, seed, 0, shuffle)
    visits = order.visits(0, len(order))
    assert len(set(visits)) == len(visits)
    for number, (sizes, weight) in enumerate(lists):
        own = [visit.unit for visit in visits if visit.source == number]
        units, whole = sum(sizes), int(weight)
        assert len(own) == whole * units + int((weight - whole) * units)
        assert all(whole <= own.count(unit) <= whole + 1 for unit in range(units))
    halves = [order.visits(start, len(order), 2) for start in (0, 1)]
    assert sorted(map(str, halves[0] + halves[1])) == sorted(map(str, visits))


def test_a_list_of_which_an_epoch_visits_nothing_is_told(lists, monkeypatch):
    warn = Mock()
    monkeypatch.setattr(loaders.LOG, "warning", warn)
    entries = {name: ListSettings(str(lists[name]), weight)
               for name, weight in (("tts", 0.1), ("t2t", 0.2), ("s2t", 0.0))}  # fmt: skip
    source = loader(lists, lists=entries)
    assert len(source.windows.share(0)) == 1
    assert [call.args[1:] for call in warn.call_args_list] == [("tts", 0.1, 8)]


def test_held_out_batches_keep_the_limit_of_frames_and_tell_what_is_left_out(
    lists, tmp_path, monkeypatch
):
    warn = Mock()
    monkeypatch.setattr(loaders.LOG, "warning", warn)
    rows = [json.loads(line) for line in lists["s2t"].read_text().splitlines()]
    for row in rows:
        row["wav"] = str(lists["s2t"].parent / row["wav"])
    rows[3]["wav"] = "gone.wav"
    entries = {"mine": ListSettings(str(write_list(tmp_path / "mine.list", rows)))}
    settings = DataSettings(lists=entries, layout="bucketed", batch_frames=100)
    batches = loaders.held_out_batches(entries, PREPARER, settings, 1)
    assert sorted(key for batch in batches for key, _ in keys(batch)) == [
        f"u{one}" for one in range(8) if one != 3
    ]
    assert all(batch.mels.shape[0] * batch.mels.shape[1] <= 100 for batch in batches)
    (told,) = [call.args for call in warn.call_args_list]
    assert told[1] == "held-out mine" and "gone.wav: no such file" in told[-1]


def test_batches_of_one_task_hold_every_utterance_once(lists):
    batches = one_epoch(loader(lists, layout="bucketed", by_task=True, window=100))
    assert all(len({task for row in batch.tasks for task in row}) == 1 for batch in batches)
    assert len({pair for batch in batches for pair in keys(batch)}) == 24


def tokens(rows: Rows[Sequence]) -> int:
    return len(rows) * max(sum(map(len, row)) for row in rows)


@given(sizes=st.lists(st.integers(1, 90), max_size=60), limit=st.integers(1, 120),
       rows=st.integers(1, 5), layout=st.sampled_from(sorted(LAYOUTS)))  # fmt: skip
def test_layouts_lose_nothing_and_keep_their_limit(sizes, limit, rows, layout):
    window = [Sequence(str(n), "t2t", [0] * size, [True] * size, [], [], False)
              for n, size in enumerate(sizes)]  # fmt: skip
    batches = LAYOUTS[layout](window, limit, rows, random.Random(0))
    kept = [one.key for batch in batches for row in batch for one in row]
    assert sorted(kept, key=int) == [one.key for one in window]
    for batch in batches:
        longest = max(len(one) for row in batch for one in row)
        assert tokens(batch) <= limit * rows or longest > limit


@given(sizes=st.lists(st.integers(1, 50), max_size=40), limit=st.integers(1, 300))
def test_no_batch_has_more_frames_than_allowed(sizes, limit):
    batches = [[[size] for size in sizes]] if sizes else []
    parted = within_frames(batches, limit, lambda size: [size])  # type: ignore[type-var]
    assert [row[0] for rows in parted for row in rows] == sizes
    for rows in parted:
        assert len(rows) == 1 or len(rows) * max(row[0] for row in rows) <= limit
