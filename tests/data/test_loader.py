"""Claims about the endless batches."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from osum_echat.data.loader import (
    DataSettings,
    ListSettings,
    Loader,
    epoch_order,
    held_out_batches,
    open_sources,
)
from osum_echat.data.prepare import Preparer, PrepareSettings
from osum_echat.data.prompts import Prompts
from osum_echat.errors import ConfigError, DataError
from osum_echat.sequence import Batch
from tests.data.world import CODES, write_list, write_world
from tests.letters import letter_vocab

PREPARER = Preparer(
    PrepareSettings(thinking="both", template="english", speech_per_text=0.0),
    letter_vocab(CODES), 80, Prompts({}),
)  # fmt: skip


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_world(tmp_path_factory.mktemp("world"))


def loader(paths: dict[str, Path], **changes: Any) -> Loader:
    names = [name for name in ("tts", "s2s_think", "t2t") if name in paths]
    entries = {name: ListSettings(str(paths[name])) for name in names}
    chosen = {"lists": entries, "row_tokens": 600, "rows": 2, "window": 7, "prefetch": 0, **changes}
    settings = DataSettings(**chosen)
    return Loader(open_sources(settings.lists), PREPARER, settings, seed=5)


def keys(batch: Batch) -> list[tuple[str, str]]:
    return [
        pair
        for row, tasks in zip(batch.keys, batch.tasks, strict=True)
        for pair in zip(row, tasks, strict=True)
    ]


def one_epoch(source: Loader) -> list[Batch]:
    epoch, batches = source.epoch, []
    while source.epoch == epoch:
        batches.append(next(source))
    return batches


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_an_epoch_holds_everything_once(lists: dict[str, Path], layout: str) -> None:
    seen = [pair for batch in one_epoch(loader(lists, layout=layout)) for pair in keys(batch)]
    tasks = ("s2s_think", "t2t", "tts")
    assert sorted(seen) == sorted((f"u{one}", task) for one in range(8) for task in tasks)


def test_epochs_differ_and_seeds_repeat(lists: dict[str, Path]) -> None:
    first, again = loader(lists), loader(lists)
    orders = [[keys(batch) for batch in one_epoch(one)] for one in (first, first, again)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("given", [1, 4, 9])
def test_a_resume_goes_on_with_the_very_next_batch(
    lists: dict[str, Path], given: int, prefetch: int
) -> None:
    whole = loader(lists)
    for _ in range(given):
        next(whole)
    state = whole.state_dict()
    other = loader(lists, prefetch=prefetch)
    other.load_state_dict(state)
    for _ in range(9):
        expected, found = next(whole), next(other)
        assert torch.equal(expected.ids, found.ids)
        assert expected.mels is None or torch.equal(expected.mels, found.mels)
        assert whole.state_dict() == other.state_dict()
    other.close()


def test_preparing_ahead_changes_nothing(lists: dict[str, Path]) -> None:
    ahead = loader(lists, prefetch=3)
    for expected in one_epoch(loader(lists)):
        assert keys(next(ahead)) == keys(expected)
    ahead.close()


def test_a_list_of_weight_two_and_a_half_comes_two_or_three_times() -> None:
    visits = epoch_order([(10, 2.5), (4, 0.0)], seed=1, epoch=0)
    counts = [sum(visit.unit == unit for visit in visits) for unit in range(10)]
    assert {visit.source for visit in visits} == {0}
    assert sorted(counts) == [2] * 5 + [3] * 5


def test_another_half_is_drawn_each_epoch() -> None:
    halves = [frozenset(epoch_order([(20, 0.5)], 1, epoch)) for epoch in range(3)]
    assert [len(half) for half in halves] == [10] * 3
    assert len(set(halves)) == 3


def test_drops_are_counted_by_list_and_reason(
    lists: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [{"key": f"b{one}", "txt": "x", "task": "<TEXT2TOKEN>"} for one in range(3)]
    entries = {
        "bad": ListSettings(str(write_list(tmp_path / "bad.list", bad))),
        "t2t": ListSettings(str(lists["t2t"])),
    }
    source = loader(lists, lists=entries)
    logging.getLogger("osum_echat").propagate = True
    with caplog.at_level(logging.INFO, logger="osum_echat"):
        one_epoch(source)
        next(source)
    assert "bad: no speech tokens 3" in caplog.text
    assert caplog.text.count("first drop") == 1


def test_lists_without_a_usable_record_are_an_error(tmp_path: Path) -> None:
    bad = write_list(tmp_path / "bad.list", [{"key": "b", "txt": "x", "task": "<TEXT2TOKEN>"}])
    for prefetch in (0, 1):
        source = loader({}, lists={"bad": ListSettings(str(bad))}, prefetch=prefetch)
        with pytest.raises(DataError, match="none of 1 utterances can be used; bad: no speech"):
            next(source)


def test_no_weight_at_all_is_an_error(lists: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="raise a weight"):
        loader(lists, lists={"tts": ListSettings(str(lists["tts"]), weight=0.0)})


def test_held_out_batches_are_always_the_same(lists: dict[str, Path]) -> None:
    entries = {"s2s_think": ListSettings(str(lists["s2s_think"]))}
    settings = DataSettings(entries, held_out_utterances=3, row_tokens=600, rows=2)
    first, again = (held_out_batches(entries, PREPARER, settings, seed=1) for _ in range(2))
    assert sum(len(keys(batch)) for batch in first) == 3
    assert all(torch.equal(one.ids, two.ids) for one, two in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lists": {}}, "at least one list"), ({"layout": "square"}, "'square' is not one of packed"),
     ({"rows": 0}, "data.rows: 0")],
)  # fmt: skip
def test_wrong_settings_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSettings(**{"lists": {"a": ListSettings("a.list")}, **changes})
