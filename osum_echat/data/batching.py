"""Which utterances share a batch: the order of an epoch, its windows, and the rows of each.

An epoch's visits are cut into windows: some hundred utterances laid out together, then decoded
batch by batch. A window is made from its place in the data alone, always to the same batches.
Layouts work on anything with a length in tokens, so that batches are known before sound is decoded.
"""

import random
from collections.abc import Callable, Iterator, Sized
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from osum_echat.data.prepare import Draft, Preparer
from osum_echat.data.sources import Dropped, Noted, Source
from osum_echat.sequence import Batch, Sequence, collate, pack
from osum_echat.settings import check_numbers, check_word

Item = TypeVar("Item", bound=Sized)
Rows = list[list[Item]]  # of one batch; a row holds one sequence or several


def packed_batches(
    window: Items[Item], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows[Item]]:
    """Batches of packed rows; every sequence of the window is in exactly one.

    Rows hold up to `row_tokens` (a longer sequence has its own) and batches up to `rows` rows. Rows
    are shuffled, since packing sorts by length, and spread so that no batch is nearly empty.
    """
    packed = _even(window, row_tokens)
    rng.shuffle(packed)
    count = -(-len(packed) // rows)
    return [packed[number::count] for number in range(count)]


def _even(window: Items[Item], row_tokens: int) -> Rows[Item]:
    """As few rows as first-fit packing needs, of like length where that can be: less padding."""
    packed = pack(window, row_tokens)
    even: Rows[Item] = [[] for _ in packed]
    sizes = [0] * len(packed)
    for one in sorted(window, key=len, reverse=True):
        least = sizes.index(min(sizes))
        even[least].append(one)
        sizes[least] += len(one)
    return even if max(sizes, default=0) <= row_tokens else packed


def bucketed_batches(
    window: Items[Item], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows[Item]]:
    """Batches of one sequence a row, of like length, padded to at most `row_tokens * rows` tokens.

    Causal attention over short rows costs less than masked attention over long packed ones. A
    longer sequence has a batch to itself. The batches are shuffled.
    """
    batches: list[Rows[Item]] = []
    for sequence in sorted(window, key=len, reverse=True):
        longest = len(batches[-1][0][0]) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= row_tokens * rows:
            batches[-1].append([sequence])
        else:
            batches.append([[sequence]])
    rng.shuffle(batches)
    return batches


def within_frames(
    batches: Items[Rows[Item]], limit: int, frames: Callable[[Item], list[int]]
) -> list[Rows[Item]]:
    """The batches, parted where their clips, padded to the longest, would hold over `limit` frames.

    A row whose clips alone are over it has a batch to itself.
    """
    parted: list[Rows[Item]] = []
    for rows in batches:
        count = longest = 0
        for number, row in enumerate(rows):
            clips = [size for one in row for size in frames(one)]
            count, longest = count + len(clips), max([longest, *clips])
            if number == 0 or count * longest > limit:
                parted.append([row])
                count, longest = len(clips), max(clips, default=0)
            else:
                parted[-1].append(row)
    return parted


LAYOUTS = {"packed": packed_batches, "bucketed": bucketed_batches}


@dataclass(frozen=True, slots=True)
class LayoutSettings:
    """How the rows of a window share batches."""

    by_task: bool = False  # a batch holds one task; see engine.share_start
    layout: str = "packed"  # packed: rows shared; bucketed: one a row, like lengths together
    row_tokens: int = 2048  # packed: of a row; bucketed: rows times this is what a batch holds
    rows: int = 8
    window: int = 256  # utterances that are laid out together
    batch_frames: int = 0  # clips of a batch times the frames of the longest, at most; 0: any
    stretch: int = 16  # utterances of one tar that are read on end
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_word("data.layout", self.layout, LAYOUTS)
        check_numbers(self, "data", "row_tokens rows window stretch", 1)
        check_numbers(self, "data", "batch_frames", 0)


@dataclass(frozen=True, slots=True)
class Visit:
    """One reading of a unit in an epoch; `repeat` counts those of a list with weight over 1."""

    source: int
    repeat: int
    unit: int


class EpochSampler:
    """The visits of an epoch. Memory goes with the number of stretches, not of visits.

    lists: of each source the edges of its stretches (stretches + 1,) and its weight. A weight of
    2.5 visits every unit twice and a part of int(0.5 * units) of them, drawn anew each epoch, once
    more. Stretches are shuffled, the units inside them are not.
    """

    def __init__(
        self, lists: Items[tuple[np.ndarray, float]], seed: int, epoch: int, shuffle: bool = True,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng([seed, epoch])
        parts = [
            stretch
            for source, (edges, weight) in enumerate(lists)
            for stretch in _visited(source, edges, weight, rng, shuffle)
        ]
        table = np.concatenate([np.zeros((4, 0), dtype=np.int64), *parts], axis=1)
        if shuffle:
            table = table[:, rng.permutation(table.shape[1])]
        self._source, self._repeat, self._first, sizes = table
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def visits(self, start: int, stop: int, step: int = 1) -> list[Visit]:
        """The visits at these places of the order."""
        places = np.arange(start, min(stop, len(self)), step)
        stretch = np.searchsorted(self._ends, places, side="right")
        before = np.concatenate([[0], self._ends])[stretch]
        units = self._first[stretch] + places - before
        columns = (self._source[stretch], self._repeat[stretch], units)
        return [Visit(*row) for row in zip(*(one.tolist() for one in columns), strict=True)]


def _visited(
    source: int, edges: np.ndarray, weight: float, rng: np.random.Generator, shuffle: bool
) -> list[np.ndarray]:
    """Tables (source, repeat, first unit, units; stretches) of the visits of one list."""
    firsts, sizes = edges[:-1], np.diff(edges)
    whole = int(weight)
    tables = [_table(source, repeat, firsts, sizes) for repeat in range(whole)]
    part = int((weight - whole) * int(edges[-1]))
    if part:
        chosen = rng.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
        ends = np.cumsum(sizes[chosen])
        last = int(np.searchsorted(ends, part))
        chosen = chosen[: last + 1]
        own = sizes[chosen].copy()
        own[-1] -= int(ends[last]) - part
        tables.append(_table(source, whole, firsts[chosen], own))
    return tables


def _table(source: int, repeat: int, firsts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    kept = sizes > 0
    firsts, sizes = firsts[kept], sizes[kept]
    return np.stack([np.full_like(firsts, source), np.full_like(firsts, repeat), firsts, sizes])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a loader is: batches already given of the window that starts at `visit` of `epoch`."""

    epoch: int = 0
    visit: int = 0
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Visits `start` to `end` of an epoch's share; the first `given` batches are not wanted."""

    epoch: int
    start: int
    end: int
    given: int
    is_last: bool  # of its epoch


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a record of a list: left out for a reason, or used and something told of it."""

    source: str
    dropped: Dropped | None = None
    notes: tuple[Noted, ...] = ()


@dataclass(frozen=True, slots=True)
class MadeBatch:
    """A batch, the place after it, and what came of the records on the way.

    A batch whose rows are all lost is None. drafted: of the whole window, with its first batch.
    """

    batch: Batch | None
    place: Place
    drafted: list[Outcome] = field(default_factory=list)
    decoded: list[Outcome] = field(default_factory=list)


class Windows:
    """The windows of one process's share (rank of world) of every epoch, and how each is made.

    As a map-style data set, `windows[window]` is what `make` gives.
    """

    def __init__(
        self, sources: Items[tuple[Source, float]], preparer: Preparer, settings: LayoutSettings,
        seed: int, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.sources = [source for source, _ in sources]
        self.preparer = preparer
        self.settings = settings
        self.seed, self.rank, self.world = seed, rank, world
        stretch = settings.stretch * world  # so that each process reads some utterances on end
        self._lists = [(source.stretches(stretch), weight) for source, weight in sources]
        self._sampler: tuple[int, EpochSampler] | None = None

    def visits(self, epoch: int) -> int:
        """How many visits this process has in an epoch."""
        return len(range(self.rank, len(self._epoch(epoch)), self.world))

    def share(self, epoch: int, start: int = 0, end: int | None = None) -> list[Visit]:
        """This process's visits `start` to `end` of an epoch."""
        sampler = self._epoch(epoch)
        last = len(sampler) if end is None else self.rank + end * self.world
        return sampler.visits(self.rank + start * self.world, last, self.world)

    def after(self, place: Place) -> Iterator[Window]:
        """The windows from a place on, without end."""
        while True:
            visits = self.visits(place.epoch)
            while place.visit < visits:
                end = min(place.visit + self.settings.window, visits)
                yield Window(place.epoch, place.visit, end, place.batches, end == visits)
                place = Place(place.epoch, end)
            place = Place(place.epoch + 1)

    def lay_out(self, window: Window) -> tuple[list[Rows[Draft]], list[Outcome]]:
        """All batches of a window, nothing decoded yet, and what came of its utterances."""
        drafts, outcomes = self._drafts(window)
        rng = random.Random(f"{self.seed} {window.epoch} window {window.start} {self.rank}")
        settings = self.settings
        groups = [drafts]
        if settings.by_task:
            tasks = sorted({one.row.task for one in drafts})
            groups = [[one for one in drafts if one.row.task == task] for task in tasks]
        batches = []
        for group in groups:
            batches += LAYOUTS[settings.layout](group, settings.row_tokens, settings.rows, rng)
        if settings.by_task:
            rng.shuffle(batches)
        if settings.batch_frames:
            batches = within_frames(batches, settings.batch_frames, lambda one: one.frames)
        return batches, outcomes

    def make(self, window: Window) -> Iterator[MadeBatch]:
        """The batches of a window that were not given yet. Sound is decoded a batch at a time."""
        batches, drafted = self.lay_out(window)
        if window.given:
            drafted = []  # they were told with the first batch of the window
        after = Place(window.epoch + 1) if window.is_last else Place(window.epoch, window.end)
        for number in range(window.given, len(batches)):
            is_end = number + 1 == len(batches)
            place = after if is_end else Place(window.epoch, window.start, number + 1)
            rows, decoded = self._finished(batches[number])
            batch = collate(rows, self.preparer.vocab) if rows else None
            yield MadeBatch(batch, place, drafted, decoded)
            drafted = []
        if window.given >= len(batches):
            yield MadeBatch(None, after, drafted)

    def __getitem__(self, window: Window) -> Iterator[MadeBatch]:
        return self.make(window)

    def _epoch(self, epoch: int) -> EpochSampler:
        if self._sampler is None or self._sampler[0] != epoch:
            sampler = EpochSampler(self._lists, self.seed, epoch, self.settings.shuffle)
            self._sampler = (epoch, sampler)
        return self._sampler[1]

    def _drafts(self, window: Window) -> tuple[list[Draft], list[Outcome]]:
        """The rows of a window without their sound, and what came of each utterance."""
        drafts: list[Draft] = []
        outcomes: list[Outcome] = []
        for visit in self.share(window.epoch, window.start, window.end):
            source = self.sources[visit.source]
            found = source.read(visit.unit)
            draft = found if isinstance(found, Dropped) else self.preparer.draft(
                found, self._rng(window.epoch, visit), source.name)  # fmt: skip
            if isinstance(draft, Dropped):
                outcomes.append(Outcome(source.name, draft))
            else:
                outcomes.append(Outcome(source.name, None, draft.notes))
                drafts.append(draft)
        return drafts, outcomes

    def _rng(self, epoch: int, visit: Visit) -> random.Random:
        """The chance of one utterance at one visit. The 0 keeps the draws of runs that go on."""
        name = f"{self.seed} {epoch} {visit.source} {visit.repeat} {visit.unit} 0"
        return random.Random(name)

    def _finished(self, rows: Rows[Draft]) -> tuple[list[list[Sequence]], list[Outcome]]:
        """The rows of a batch with their sound; rows that lose all they hold are left out."""
        finished: list[list[Sequence]] = []
        outcomes: list[Outcome] = []
        for row in rows:
            whole: list[Sequence] = []
            for one in row:
                notes: list[Noted] = []
                sequence = self.preparer.finish(one, notes)
                dropped = sequence if isinstance(sequence, Dropped) else None
                outcomes.append(Outcome(one.source, dropped, tuple(notes)))
                if isinstance(sequence, Sequence):
                    whole.append(sequence)
            if whole:
                finished.append(whole)
        return finished, outcomes
