"""Endless batches from weighted lists: prefetched, counted drops, exact resume."""

import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import DataLoader

from osum_echat.data.batching import (
    LAYOUTS,
    LayoutSettings,
    MadeBatch,
    Outcome,
    Place,
    Windows,
    within_frames,
)
from osum_echat.data.manifest import OfKind, open_source, read_manifest
from osum_echat.data.prepare import Preparer
from osum_echat.data.sources import Dropped, Noted, Source
from osum_echat.device import read_ahead
from osum_echat.errors import ConfigError, DataError, OsumError
from osum_echat.files import Files, write_json
from osum_echat.logs import logger
from osum_echat.records import Utterance
from osum_echat.sequence import Batch, Sequence, collate
from osum_echat.settings import check_numbers, read_mapping

LOG = logger(__name__)
_EXAMPLES = 20  # of each list and reason, in the report
_FILES_TOLD = 20
_ALIGNED = 64  # bytes that each tensor of a shared block begins at a multiple of

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ListSettings:
    """One list: its file, how often an epoch goes through it, and a task that overrides its own.

    path: a raw jsonl, a list of tars or combine pairs, a tar, or a folder of these.
    """

    path: str
    weight: float = 1.0  # 2.5: twice, and another random half each epoch; 0: not at all
    task: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < float("inf"):
            raise ConfigError(f"data.lists: weight {self.weight} of {self.path}, need 0 or more")


@dataclass(frozen=True, slots=True)
class DataSettings(LayoutSettings):
    """Which lists are read, how rows share batches, and who makes them."""

    lists: dict[str, ListSettings] = field(default_factory=dict)
    manifests: dict[str, str] = field(default_factory=dict)  # YAML by kind: s2t, t2s, s2s, t2t
    held_out: dict[str, ListSettings] | None = None  # scored now and then, never trained
    held_out_utterances: int = 200  # of each held-out list
    schemes: tuple[str, ...] = ()  # of URLs that may be read: s3, hf, https ...; none: local only
    prefetch: int = 2  # made ahead: windows by each worker, or batches in a thread; 0: none
    workers: int = 0  # processes that make windows; 0: a thread of this one makes batches
    bad_in_a_row: int = 100  # broken records on end that stop the reading; 0: never

    def __post_init__(self) -> None:
        LayoutSettings.__post_init__(self)
        if not self.lists and not self.manifests:
            raise ConfigError("data.lists: name at least one list, or give data.manifests")
        check_numbers(self, "data", "held_out_utterances prefetch workers bad_in_a_row", 0)


def open_lists(
    lists: dict[str, ListSettings] | None, schemes: tuple[str, ...] = ()
) -> list[tuple[Source, float]]:
    """The sources of the lists with their weights; DataError names a list that cannot be read."""
    files = Files(schemes, "data.schemes")
    return [
        (open_source(name, entry.path, entry.task, files), entry.weight)
        for name, entry in (lists or {}).items()
    ]


def open_sources(settings: DataSettings) -> list[tuple[Source, float]]:
    """All sources of an experiment with their weights: its lists, then those of its manifests."""
    files = Files(settings.schemes, "data.schemes")
    sources = open_lists(settings.lists, settings.schemes)
    for kind, place in settings.manifests.items():
        for entry in read_manifest(place, files):
            if entry.weight:
                source = open_source(f"{kind} {entry.name}", entry.path, files=files)
                sources.append((OfKind(source, kind), entry.weight))
    return sources


class Drops:
    """Counts of what was left out, and of what was used but told. `report`: where they are written.

    bad_in_a_row: so many broken records one after the other end the reading; 0: never.
    """

    def __init__(self, report: Path | None = None, bad_in_a_row: int = 0) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.noted: Counter[tuple[str, str]] = Counter()
        self.read = 0  # records looked at
        self._examples: dict[tuple[str, str], list[str]] = {}
        self._report, self._limit = report, bad_in_a_row
        self._bad: list[str] = []

    def add(self, outcomes: list[Outcome], first_look: bool = True) -> None:
        """Count outcomes in the order of reading.

        first_look: whether the records are seen for the first time, or now decoded. Raises
        DataError, naming the files, when too many in a row are broken.
        """
        for outcome in outcomes:
            self.read += first_look
            for note in outcome.notes:
                self._count(self.noted, outcome.source, note, "used, but to be looked at")
            if outcome.dropped is None:
                self._bad.clear()
                continue
            self._count(self.counts, outcome.source, outcome.dropped, "first drop")
            if outcome.dropped.file is not None:
                self._bad.append(outcome.dropped.file)
                self._check_limit(outcome.dropped)

    def _check_limit(self, last: Dropped) -> None:
        if not 0 < self._limit <= len(self._bad):
            return
        self.write({})
        files = list(dict.fromkeys(self._bad))
        more = f" and {len(files) - _FILES_TOLD} more" if len(files) > _FILES_TOLD else ""
        raise DataError(
            f"{len(self._bad)} records in a row are broken, the last: {last.detail}; mend or leave "
            f"out {', '.join(files[:_FILES_TOLD])}{more}, or raise data.bad_in_a_row"
        )

    def words(self) -> str:
        """The counts of what was left out, in one line."""
        return "; ".join(
            f"{source}: {reason} {count}" for (source, reason), count in self.counts.most_common()
        )

    def write(self, place: dict[str, int]) -> None:
        """Write the report, with the place in the data that the counts belong to."""
        if self._report is None:
            return
        kinds = {"drops": self.counts, "noted": self.noted}
        rows = {
            kind: [
                {"list": name[0], "reason": name[1], "count": count,
                 "first": self._examples.get(name, [])}
                for name, count in counts.most_common()
            ]
            for kind, counts in kinds.items()
        }  # fmt: skip
        write_json(
            self._report,
            {"read": self.read, "dropped": self.counts.total(), "place": place, **rows},
        )

    def go_on(self, place: dict[str, int]) -> None:
        """Take up the counts of the report where they belong to this place; else begin at none."""
        for counts in (self.counts, self.noted, self._examples, self._bad):
            counts.clear()
        self.read = 0
        try:
            report = read_mapping(self._report) if self._report and self._report.exists() else {}
        except OsumError as error:
            LOG.warning("%s; counting from none", error)
            return
        if report.get("place") != place:
            return
        self.read = int(report["read"])
        for kind, kept in (("drops", self.counts), ("noted", self.noted)):
            for row in report.get(kind, []):
                name = (str(row["list"]), str(row["reason"]))
                kept[name] = int(row["count"])
                self._examples[name] = [str(one) for one in row["first"]]

    def _count(
        self, counts: Counter[tuple[str, str]], source: str, one: Dropped | Noted, first: str
    ) -> None:
        name = (source, one.reason)
        counts[name] += 1
        examples = self._examples.setdefault(name, [])
        if len(examples) < _EXAMPLES:
            examples.append(one.detail)
        if counts[name] == 1:
            LOG.warning("%s: %s, %s: %s", source, first, one.reason, one.detail)


def in_processes(
    windows: Windows, place: Place, workers: int, prefetch: int
) -> Generator[MadeBatch, None, None]:
    """What follows a place: windows made by worker processes in turn, given in their order.

    Raises DataError when a worker dies.
    """
    loader: DataLoader[list[MadeBatch | OsumError]] = DataLoader(
        windows,  # type: ignore[arg-type]  # a map from windows; it has no end and no length
        batch_size=None,
        sampler=windows.after(place),
        num_workers=workers,
        prefetch_factor=max(prefetch, 1),
        collate_fn=_collected,  # type: ignore[arg-type]  # of what the windows give
        worker_init_fn=_ignore_interrupt,
        multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
        generator=torch.Generator(),  # or every start would draw from that of the training
    )
    try:
        for made in _started(loader):
            for one in made:
                if isinstance(one, OsumError):
                    raise one
                yield one
    except RuntimeError as error:
        raise DataError(
            f"{error}; it may have run out of memory, its own or shared (/dev/shm): lower "
            "data.workers, data.prefetch or data.window"
        ) from error


def _started(loader: DataLoader[Item]) -> Iterator[Item]:
    """The iterator of a loader, its workers started.

    torch raises the death of a worker from a signal handler too, in the midst of whatever runs
    then; who waits for the next item is told anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return items


def _ignore_interrupt(_: int) -> None:
    """The process that reads decides when to end; an interrupt goes to all of a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collected(made: Iterator[MadeBatch]) -> list[MadeBatch | OsumError]:
    """The batches of a window, each in shared memory as soon as it is made, and what ended them."""
    found: list[MadeBatch | OsumError] = []
    try:
        for one in made:
            batch = one.batch if one.batch is None else _shared(one.batch)
            found.append(replace(one, batch=batch))
    except OsumError as error:  # in one line, where DataLoader would hand on its traceback
        found.append(error)
    return found


def _shared(batch: Batch) -> Batch:
    """The tensors of a batch as parts of one shared block: one file to hand over, not a dozen.

    They are written into the file, as a copy through memory stops at each new page.
    """
    values = {one.name: getattr(batch, one.name) for one in fields(batch)}
    tensors = {name: one for name, one in values.items() if isinstance(one, Tensor)}
    sizes = [-(-one.nbytes // _ALIGNED) * _ALIGNED for one in tensors.values()]
    storage = torch.UntypedStorage._new_shared(sum(sizes))
    file = storage._share_fd_cpu_()[0] if get_sharing_strategy() == "file_descriptor" else None
    block, at = torch.empty(0, dtype=torch.uint8).set_(storage), 0
    shared: dict[str, Any] = {}
    for (name, one), size in zip(tensors.items(), sizes, strict=True):
        shared[name] = block[at : at + one.nbytes].view(one.dtype).view(one.shape)
        if file is None or os.pwrite(file, _bytes(one), at) < one.nbytes:
            shared[name].copy_(one)
        at += size
    return replace(batch, **shared)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


class Loader:
    """Batches without end. The place after the last batch given is all that a resume needs.

    Any chance is drawn from the seed and the place of the utterance in the epoch, so a window that
    was left in the middle is laid out again and the batches already given are skipped, without
    decoding them; the number of workers changes nothing. Of several processes (rank of world) each
    reads its own share of every epoch's visits. report: where what was left out is written.
    """

    def __init__(
        self, sources: Items[tuple[Source, float]], preparer: Preparer, settings: DataSettings,
        seed: int, rank: int = 0, world: int = 1, report: Path | None = None,
    ) -> None:  # fmt: skip
        self.preparer, self.settings, self.seed = preparer, settings, seed
        self.windows = Windows(sources, preparer, settings, seed, rank, world)
        self.drops = Drops(report, settings.bad_in_a_row)
        self.epoch = 0
        self._place = Place()
        self._given: int | None = 0  # batches of this epoch; None: it did not begin here
        self._made: Generator[MadeBatch, None, None] | None = None
        for source, weight in sources:
            if weight and not int(weight * len(source)):
                LOG.warning("%s: weight %s of %d utterances is none of them; raise it",
                            source.name, weight, len(source))  # fmt: skip
        self.visits = self.windows.visits(0)  # of every epoch, by this process
        if not self.visits:
            raise DataError(
                f"data.lists: no utterance in an epoch for each of {world} processes; raise a "
                "weight or start fewer"
            )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._made is None:
            self._made = self._making()
        while True:
            made = next(self._made)
            self.drops.add(made.drafted)
            self.drops.add(made.decoded, first_look=False)
            if made.batch is not None and self._given is not None:
                self._given += 1
            if made.place.epoch > self._place.epoch:
                self._end_epoch()
            self._place, self.epoch = made.place, made.place.epoch
            if made.batch is not None:
                return made.batch

    def state_dict(self) -> dict[str, int]:
        """The place after the last batch given; the report is brought up to it."""
        state = asdict(self._place)
        self.drops.write(state)
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch after that place."""
        self.close()
        self._place = Place(**state)
        self.epoch = self._place.epoch
        self._given = 0 if self._place == Place(self.epoch) else None
        self.drops.go_on(state)

    def close(self) -> None:
        """End the thread or the processes that make batches ahead."""
        if self._made is not None:
            self._made.close()
        self._made = None

    def _making(self) -> Generator[MadeBatch, None, None]:
        workers, prefetch = self.settings.workers, self.settings.prefetch
        if workers:
            return in_processes(self.windows, self._place, workers, prefetch)
        windows = self.windows.after(self._place)
        made = (one for window in windows for one in self.windows.make(window))
        return read_ahead(made, prefetch) if prefetch else made

    def _end_epoch(self) -> None:
        """Tell what was left out; an epoch that gave nothing is an error."""
        epoch = self._place.epoch
        words = self.drops.words()
        if words:
            LOG.info("up to the end of epoch %d (%d records read) dropped: %s",
                     epoch, self.drops.read, words)  # fmt: skip
        self.drops.write(asdict(Place(epoch + 1)))
        if self._given == 0:
            self.close()
            raise DataError(
                f"epoch {epoch}: none of {self.visits} utterances can be used; "
                f"{words or 'see the lists'}"
            )
        self._given = 0


def held_out_batches(
    lists: dict[str, ListSettings] | None, preparer: Preparer, settings: DataSettings, seed: int
) -> list[Batch]:
    """The first utterances of each held-out list as batches, always the same ones."""
    rows = [row for _, row in held_out_rows(lists, preparer, settings, seed)]
    lay_out = LAYOUTS[settings.layout]
    batches = lay_out(rows, settings.row_tokens, settings.rows, random.Random(seed))
    if settings.batch_frames:
        batches = within_frames(batches, settings.batch_frames, lambda one: [*map(len, one.clips)])
    return [collate(batch, preparer.vocab) for batch in batches]


def held_out_rows(
    lists: dict[str, ListSettings] | None, preparer: Preparer, settings: DataSettings, seed: int
) -> Iterator[tuple[Utterance, Sequence]]:
    """The first utterances of each held-out list that can be used, and their rows; tells drops."""
    drops = Drops()
    for source, _ in open_lists(lists, settings.schemes):
        for unit in range(min(len(source), settings.held_out_utterances)):
            found = source.read(unit)
            row = found if isinstance(found, Dropped) else preparer(
                found, random.Random(f"{seed} held out {source.name} {unit}"))  # fmt: skip
            if isinstance(row, Dropped):
                drops.add([Outcome(f"held-out {source.name}", row)])
            elif isinstance(found, Utterance):
                yield found, row
