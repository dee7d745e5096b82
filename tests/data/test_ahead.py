"""Claims about worker processes: the same batches as one process makes, and nobody left behind."""

import os
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from osum_echat.data.loader import DataSettings, ListSettings, Loader, open_sources
from osum_echat.data.passing import receive
from osum_echat.data.prepare import Preparer
from osum_echat.data.settings import PrepareSettings
from osum_echat.data.windows import Place
from osum_echat.errors import DataError
from osum_echat.sequence import Batch
from osum_echat.tasks import Prompts
from tests.data.forms import raw_rows, write_shard
from tests.data.world import CODES
from tests.letters import letter_vocab

PREPARER = Preparer(
    PrepareSettings(thinking="label", template="english", speech_per_text=0.0, time_masks=2),
    letter_vocab(CODES), 80, Prompts({}),
)  # fmt: skip


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    return write_shard(folder / "a.tar", raw_rows(folder, "s2s", 20), folder)


def loader(tar: Path, rank: int = 0, world: int = 1, **changes: Any) -> Loader:
    lists = {"a": ListSettings(str(tar))}
    base = {"lists": lists, "row_tokens": 700, "rows": 2, "window": 5, "stretch": 2, "prefetch": 2}
    settings = DataSettings(**{**base, **changes})
    return Loader(open_sources(settings), PREPARER, settings, 3, rank, world)


def take(source: Loader, count: int) -> list[Batch]:
    found = [next(source) for _ in range(count)]
    source.close()
    return found


def same(one: Batch, other: Batch) -> bool:
    assert one.mels is not None
    assert other.mels is not None
    return one.keys == other.keys and torch.equal(one.ids, other.ids) and torch.equal(
        one.mels, other.mels
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(tar: Path, workers: int) -> None:
    wanted = take(loader(tar, prefetch=0), 9)
    found = take(loader(tar, workers=workers), 9)
    assert all(same(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("given", [1, 2, 5])
def test_a_resume_with_other_workers_is_exact(tar: Path, given: int) -> None:
    whole = loader(tar, workers=2)
    for _ in range(given):
        next(whole)
    state = whole.state_dict()
    wanted = take(whole, 5)
    other = loader(tar, workers=3)
    other.load_state_dict(state)
    assert all(same(*pair) for pair in zip(wanted, take(other, 5), strict=True))


def test_one_tar_feeds_all_ranks(tar: Path) -> None:
    shares = []
    for rank in range(3):
        source = loader(tar, rank, 3, prefetch=0)
        shares.append([visit.unit for visit in source.windows.share(0)])
    assert sorted(unit for share in shares for unit in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_killed_worker_is_an_error_not_a_wait(tar: Path) -> None:
    source = loader(tar, workers=1, prefetch=1)
    next(source)
    process = source._made._processes[0]  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="data worker 0 ended with code -9"):
        for _ in range(50):
            next(source)
    source.close()


def test_an_error_of_a_worker_comes_after_the_batches_before_it(tar: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.list"
    path.write_text('{"key": "a"}\n' * 60)
    lists = {"a": ListSettings(str(tar)), "b": ListSettings(str(path))}
    source = loader(tar, workers=2, lists=lists, shuffle=False, bad_in_a_row=30)
    given = []
    with pytest.raises(DataError, match=r"30 records in a row are broken"):
        while True:
            given.append(next(source))
    source.close()
    assert sum(len(row) for batch in given for row in batch.keys) == 20


def test_a_worker_makes_the_whole_of_its_window_while_another_is_read(tar: Path) -> None:
    source = loader(tar, workers=2, prefetch=1, window=10, rows=1)
    second = list(islice(source.windows.after(Place()), 2))[1]
    batches = len(source.windows.lay_out(second)[0])
    assert batches > 3
    next(source)
    end = source._made._ends[1]  # type: ignore[union-attr]
    made: list[Any] = []
    while len(made) < batches:  # none of which it is told was taken
        assert end.poll(20), f"it waits after {len(made)} of {batches} batches"
        made.append(receive(end))
    assert made[-1].ends_window
    source.close()


def test_closing_ends_the_workers(tar: Path) -> None:
    source = loader(tar, workers=2)
    next(source)
    processes = source._made._processes  # type: ignore[union-attr]
    source.close()
    assert not any(process.is_alive() for process in processes)


def test_a_worker_ends_when_asked_though_its_parent_only_notes_signals(tar: Path) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as a training does
    try:
        source = loader(tar, workers=1)
        next(source)
    finally:
        signal.signal(signal.SIGTERM, before)
    process = source._made._processes[0]  # type: ignore[union-attr]
    process.terminate()  # what the interpreter does with workers when it ends, and then waits
    process.join(20)
    assert process.exitcode == -signal.SIGTERM
    source.close()


@pytest.mark.slow
def test_workers_of_a_killed_parent_end(tar: Path) -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        source = loader(tar, workers=2, prefetch=1)
        next(source)
        numbers = [process.pid for process in source._made._processes]  # type: ignore[union-attr]
        os.write(writer, " ".join(map(str, numbers)).encode())
        time.sleep(60)
        os._exit(0)
    numbers = [int(one) for one in os.read(reader, 100).split()]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until = time.monotonic() + 20
    while time.monotonic() < until and any(Path(f"/proc/{one}").exists() for one in numbers):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{one}").exists() for one in numbers)
