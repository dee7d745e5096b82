"""Endless batches from weighted lists: seeded order, counted drops, packing, exact resume."""

import queue
import random
import threading
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osum_echat.data.batching import LAYOUTS, Rows
from osum_echat.data.prepare import Preparer
from osum_echat.data.sources import Dropped, RawSource, Source
from osum_echat.errors import ConfigError, DataError
from osum_echat.logs import logger
from osum_echat.sequence import Batch, Sequence, collate

LOG = logger(__name__)


@dataclass(frozen=True, slots=True)
class ListSettings:
    """One list: its file, how often an epoch goes through it, and a task that overrides its own."""

    path: str
    weight: float = 1.0  # 2.5: twice, and another random half each epoch; 0: not at all
    task: str | None = None

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"data.lists: weight {self.weight} of {self.path} is negative")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which lists are read, and the size of a batch."""

    lists: dict[str, ListSettings]
    held_out: dict[str, ListSettings] | None = None  # scored now and then, never trained
    held_out_utterances: int = 200  # of each held-out list
    layout: str = "packed"  # packed: rows shared; bucketed: one a row, like lengths together
    row_tokens: int = 2048  # packed: of a row; bucketed: rows times this is what a batch holds
    rows: int = 8
    window: int = 256  # utterances that are laid out together
    prefetch: int = 2  # batches prepared ahead in a thread; 0 = none

    def __post_init__(self) -> None:
        if not self.lists:
            raise ConfigError("data.lists: name at least one list")
        if self.layout not in LAYOUTS:
            known = ", ".join(LAYOUTS)
            raise ConfigError(f"data.layout: {self.layout!r} is not one of {known}")
        for name in ("row_tokens", "rows", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}: {getattr(self, name)}, need 1 or more")


def open_sources(lists: dict[str, ListSettings]) -> list[tuple[Source, float]]:
    """The sources of the lists with their weights; DataError names a list that cannot be read."""
    return [
        (RawSource(name, Path(entry.path), entry.task), entry.weight)
        for name, entry in lists.items()
    ]


@dataclass(frozen=True, slots=True)
class Visit:
    """One unit of one source in an epoch; `turn` counts the visits of a list with weight over 1."""

    source: int
    turn: int
    unit: int


def epoch_order(sizes: Items[tuple[int, float]], seed: int, epoch: int) -> list[Visit]:
    """The visits of an epoch in their order, from (units, weight) of each source."""
    rng = np.random.default_rng([seed, epoch])
    visits = []
    for source, (units, weight) in enumerate(sizes):
        whole = int(weight)
        visits += [Visit(source, turn, unit) for turn in range(whole) for unit in range(units)]
        part = round((weight - whole) * units)
        chosen = sorted(rng.permutation(units)[:part].tolist())
        visits += [Visit(source, whole, unit) for unit in chosen]
    return [visits[place] for place in rng.permutation(len(visits))]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a loader is: batches already given of the window that starts at `visit` of `epoch`."""

    epoch: int = 0
    visit: int = 0
    batches: int = 0


class Loader:
    """Batches without end. The place after the last batch given is all that a resume needs.

    Any chance is drawn from the seed and the place of the utterance in the epoch, so a window that
    was left in the middle is made again and the batches already given are skipped. Of several
    processes (rank of world) each reads its own share of every epoch's visits.
    """

    def __init__(
        self,
        sources: Items[tuple[Source, float]],
        preparer: Preparer,
        settings: DataSettings,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rank, self.world = rank, world
        self.sources = [source for source, _ in sources]
        self.sizes = [(len(source), weight) for source, weight in sources]
        self.preparer = preparer
        self.settings = settings
        self.seed = seed
        self.drops: Counter[tuple[str, str]] = Counter()
        self.epoch = 0
        self._place = Place()
        self._batches: Iterator[tuple[Batch, Place]] | None = None
        if not self._visits(0):
            raise DataError(
                f"data.lists: no utterance in an epoch for each of {world} processes; raise a "
                "weight or start fewer"
            )

    def __next__(self) -> Batch:
        if self._batches is None:
            made = self._from(self._place)
            ahead = self.settings.prefetch
            self._batches = _Ahead(made, ahead) if ahead else made
        batch, self._place = next(self._batches)
        self.epoch = self._place.epoch
        return batch

    def state_dict(self) -> dict[str, int]:
        """The place after the last batch given."""
        place = self._place
        return {"epoch": place.epoch, "visit": place.visit, "batches": place.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch after that place."""
        self.close()
        self._place = Place(**state)
        self.epoch = self._place.epoch

    def close(self) -> None:
        """End the thread that prepares ahead."""
        if isinstance(self._batches, _Ahead):
            self._batches.close()
        self._batches = None

    def _from(self, place: Place) -> Iterator[tuple[Batch, Place]]:
        """Batches from a place on, each with the place after it."""
        while True:
            visits = self._visits(place.epoch)
            given, is_whole = 0, place.visit == 0
            while place.visit < len(visits):
                end = min(place.visit + self.settings.window, len(visits))
                rows = self._window(visits, place.epoch, place.visit, end)
                given += len(rows)
                for number in range(place.batches, len(rows)):
                    after = Place(place.epoch, place.visit, number + 1)
                    if number + 1 == len(rows):
                        after = Place(place.epoch, end)
                    if after.visit == len(visits):
                        after = Place(place.epoch + 1)
                    yield collate(rows[number], self.preparer.vocab), after
                place = Place(place.epoch, end)
            self._log_drops(place.epoch, len(visits))
            if not given and is_whole:
                raise DataError(
                    f"epoch {place.epoch}: none of {len(visits)} utterances can be used; "
                    f"{self._drop_words() or 'see the lists'}"
                )
            place = Place(place.epoch + 1)

    def _visits(self, epoch: int) -> list[Visit]:
        """This process's share of an epoch, in its order."""
        return epoch_order(self.sizes, self.seed, epoch)[self.rank :: self.world]

    def _window(
        self, visits: list[Visit], epoch: int, start: int, end: int
    ) -> list[Rows]:
        """The batches, still as rows of sequences, of the visits `start` to `end`."""
        window = []
        for visit in visits[start:end]:
            found = self.sources[visit.source].read(visit.unit)
            for number, utterance in enumerate(found):
                name = f"{self.seed} {epoch} {visit.source} {visit.turn} {visit.unit} {number}"
                row: Sequence | Dropped = (
                    utterance
                    if isinstance(utterance, Dropped)
                    else self.preparer(utterance, random.Random(name))
                )
                if isinstance(row, Dropped):
                    self._count(self.sources[visit.source].name, row)
                else:
                    window.append(row)
        rng = random.Random(f"{self.seed} {epoch} window {start} {self.rank}")
        lay_out = LAYOUTS[self.settings.layout]
        return lay_out(window, self.settings.row_tokens, self.settings.rows, rng)

    def _count(self, source: str, dropped: Dropped) -> None:
        """Count a drop; the first of each reason in a list is shown."""
        self.drops[source, dropped.reason] += 1
        if self.drops[source, dropped.reason] == 1:
            LOG.warning("%s: first drop, %s: %s", source, dropped.reason, dropped.detail)

    def _log_drops(self, epoch: int, visits: int) -> None:
        if self.drops:
            LOG.info("up to the end of epoch %d (%d visits each) dropped: %s",
                     epoch, visits, self._drop_words())  # fmt: skip

    def _drop_words(self) -> str:
        return "; ".join(
            f"{source}: {reason} {count}" for (source, reason), count in self.drops.most_common()
        )


def held_out_batches(
    lists: dict[str, ListSettings] | None, preparer: Preparer, settings: DataSettings, seed: int
) -> list[Batch]:
    """The first utterances of each held-out list as batches, always the same ones."""
    rows: list[Sequence] = []
    for source, _ in open_sources(lists or {}):
        for unit in range(min(len(source), settings.held_out_utterances)):
            for utterance in source.read(unit):
                if isinstance(utterance, Dropped):
                    continue
                rng = random.Random(f"{seed} held out {source.name} {unit}")
                row = preparer(utterance, rng)
                if not isinstance(row, Dropped):
                    rows.append(row)
    lay_out = LAYOUTS[settings.layout]
    batches = lay_out(rows, settings.row_tokens, settings.rows, random.Random(seed))
    return [collate(batch, preparer.vocab) for batch in batches]


class _Ahead:
    """An iterator whose next items are made in a thread. Errors come out where the item would."""

    def __init__(self, items: Iterator[tuple[Batch, Place]], count: int) -> None:
        self._ready: queue.Queue[tuple[Batch, Place] | Exception] = queue.Queue(count)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> "_Ahead":
        return self

    def __next__(self) -> tuple[Batch, Place]:
        item = self._ready.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stop making items; what is ready is lost."""
        self._closed.set()
        self._thread.join()

    def _make(self, items: Iterator[tuple[Batch, Place]]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except Exception as error:
            self._put(error)

    def _put(self, item: tuple[Batch, Place] | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
