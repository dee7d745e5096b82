"""One window after the other: some hundred utterances laid out together, then decoded batch-wise.

A window is made from its place in the data alone, by any process, always to the same batches.
"""

import random
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from osum_echat.data.batching import LAYOUTS, Rows, within_frames
from osum_echat.data.drops import Drop
from osum_echat.data.order import EpochOrder, Visit
from osum_echat.data.prepare import Draft, Preparer
from osum_echat.data.sources import Dropped, Source
from osum_echat.errors import ConfigError
from osum_echat.sequence import Batch, Sequence, collate


@dataclass(frozen=True, slots=True)
class LayoutSettings:
    """How the rows of a window share batches."""

    layout: str = "packed"  # packed: rows shared; bucketed: one a row, like lengths together
    row_tokens: int = 2048  # packed: of a row; bucketed: rows times this is what a batch holds
    rows: int = 8
    window: int = 256  # utterances that are laid out together
    batch_frames: int = 0  # clips of a batch times the frames of the longest, at most; 0: any
    stretch: int = 16  # utterances of one tar that are read on end
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            known = ", ".join(LAYOUTS)
            raise ConfigError(f"data.layout: {self.layout!r} is not one of {known}")
        for name in ("row_tokens", "rows", "window", "stretch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}: {getattr(self, name)}, need 1 or more")
        if self.batch_frames < 0:
            raise ConfigError(f"data.batch_frames: {self.batch_frames}, need 0 or more")


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
class Made:
    """A batch, the place after it, and what was left out on the way.

    The last one of a window is marked. A batch whose rows are all lost is None.
    """

    batch: Batch | None
    place: Place
    ends_window: bool
    drafted: list[Drop | None] = field(default_factory=list)
    decoded: list[Drop | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A draft and the name of the list it is from."""

    source: str
    draft: Draft

    def __len__(self) -> int:
        return len(self.draft)


class Windows:
    """The windows of one process's share (rank of world) of every epoch, and how each is made."""

    def __init__(
        self,
        sources: Items[tuple[Source, float]],
        preparer: Preparer,
        settings: LayoutSettings,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sources = [source for source, _ in sources]
        self.preparer = preparer
        self.settings = settings
        self.seed, self.rank, self.world = seed, rank, world
        stretch = settings.stretch * world  # so that each process reads some utterances on end
        self._lists = [(source.stretches(stretch), weight) for source, weight in sources]
        self._order: tuple[int, EpochOrder] | None = None

    def visits(self, epoch: int) -> int:
        """How many visits this process has in an epoch."""
        return len(range(self.rank, len(self._epoch(epoch)), self.world))

    def share(self, epoch: int, start: int = 0, end: int | None = None) -> list[Visit]:
        """This process's visits `start` to `end` of an epoch."""
        order = self._epoch(epoch)
        last = len(order) if end is None else self.rank + end * self.world
        return order.visits(self.rank + start * self.world, last, self.world)

    def after(self, place: Place) -> Iterator[Window]:
        """The windows from a place on, without end."""
        while True:
            visits = self.visits(place.epoch)
            while place.visit < visits:
                end = min(place.visit + self.settings.window, visits)
                yield Window(place.epoch, place.visit, end, place.batches, end == visits)
                place = Place(place.epoch, end)
            place = Place(place.epoch + 1)

    def lay_out(self, window: Window) -> tuple[list[Rows[_Listed]], list[Drop | None]]:
        """All batches of a window, nothing decoded yet, and what came of its utterances."""
        drafts, drafted = self._drafts(window)
        rng = random.Random(f"{self.seed} {window.epoch} window {window.start} {self.rank}")
        settings = self.settings
        batches = LAYOUTS[settings.layout](drafts, settings.row_tokens, settings.rows, rng)
        if settings.batch_frames:
            batches = within_frames(batches, settings.batch_frames, lambda one: one.draft.frames)
        return batches, drafted

    def make(self, window: Window) -> Iterator[Made]:
        """The batches of a window that were not given yet. Sound is decoded a batch at a time."""
        batches, drafted = self.lay_out(window)
        after = Place(window.epoch + 1) if window.is_last else Place(window.epoch, window.end)
        for number in range(window.given, len(batches)):
            is_end = number + 1 == len(batches)
            place = after if is_end else Place(window.epoch, window.start, number + 1)
            rows, decoded = self._finished(batches[number])
            batch = collate(rows, self.preparer.vocab) if rows else None
            yield Made(batch, place, is_end, drafted, decoded)
            drafted = []
        if window.given >= len(batches):
            yield Made(None, after, True, drafted)

    def _epoch(self, epoch: int) -> EpochOrder:
        if self._order is None or self._order[0] != epoch:
            order = EpochOrder(self._lists, self.seed, epoch, self.settings.shuffle)
            self._order = (epoch, order)
        return self._order[1]

    def _drafts(self, window: Window) -> tuple[list[_Listed], list[Drop | None]]:
        """The rows of a window without their sound, and what came of each utterance."""
        drafts: list[_Listed] = []
        outcomes: list[Drop | None] = []
        for visit in self.share(window.epoch, window.start, window.end):
            source = self.sources[visit.source]
            for number, utterance in enumerate(source.read(visit.unit)):
                draft: Draft | Dropped = (
                    utterance
                    if isinstance(utterance, Dropped)
                    else self.preparer.draft(utterance, self._chance(window.epoch, visit, number))
                )
                if isinstance(draft, Dropped):
                    outcomes.append(Drop(source.name, draft))
                else:
                    outcomes.append(None)
                    drafts.append(_Listed(source.name, draft))
        if window.given:
            outcomes = []  # they were told with the first batch of the window
        return drafts, outcomes

    def _chance(self, epoch: int, visit: Visit, number: int) -> random.Random:
        """The chance of one utterance at one visit."""
        name = f"{self.seed} {epoch} {visit.source} {visit.turn} {visit.unit} {number}"
        return random.Random(name)

    def _finished(self, rows: Rows[_Listed]) -> tuple[list[list[Sequence]], list[Drop | None]]:
        """The rows of a batch with their sound; rows that lose all they hold are left out."""
        finished: list[list[Sequence]] = []
        outcomes: list[Drop | None] = []
        for row in rows:
            whole = []
            for one in row:
                sequence = self.preparer.finish(one.draft)
                if isinstance(sequence, Dropped):
                    outcomes.append(Drop(one.source, sequence))
                else:
                    outcomes.append(None)
                    whole.append(sequence)
            if whole:
                finished.append(whole)
        return finished, outcomes
