"""Endless batches from weighted lists: seeded order, counted drops, packing, exact resume."""

import random
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field
from pathlib import Path

from osum_echat.data.ahead import InProcesses, InThread, in_line
from osum_echat.data.batching import LAYOUTS
from osum_echat.data.drops import Drops
from osum_echat.data.files import Files
from osum_echat.data.manifest import OfKind, open_source, read_manifest
from osum_echat.data.prepare import Preparer
from osum_echat.data.sources import Dropped, Source
from osum_echat.data.windows import LayoutSettings, Made, Place, Windows
from osum_echat.errors import ConfigError, DataError
from osum_echat.logs import logger
from osum_echat.records import Utterance
from osum_echat.sequence import Batch, Sequence, collate

LOG = logger(__name__)


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
    prefetch: int = 2  # batches made ahead, by each worker or in a thread; 0 = none
    workers: int = 0  # processes that make batches; 0: a thread of this one
    bad_in_a_row: int = 100  # broken records on end that stop the reading; 0: never

    def __post_init__(self) -> None:
        LayoutSettings.__post_init__(self)
        if not self.lists and not self.manifests:
            raise ConfigError("data.lists: name at least one list, or give data.manifests")
        for name in ("held_out_utterances", "prefetch", "workers", "bad_in_a_row"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name}: {getattr(self, name)}, need 0 or more")


def open_lists(
    lists: dict[str, ListSettings] | None, schemes: tuple[str, ...] = ()
) -> list[tuple[Source, float]]:
    """The sources of the lists with their weights; DataError names a list that cannot be read."""
    files = Files(schemes)
    return [
        (open_source(name, entry.path, entry.task, files), entry.weight)
        for name, entry in (lists or {}).items()
    ]


def open_sources(settings: DataSettings) -> list[tuple[Source, float]]:
    """All sources of an experiment with their weights: its lists, then those of its manifests."""
    files = Files(settings.schemes)
    sources = open_lists(settings.lists, settings.schemes)
    for kind, place in settings.manifests.items():
        for entry in read_manifest(place, files):
            if entry.weight:
                source = open_source(f"{kind} {entry.name}", entry.path, files=files)
                sources.append((OfKind(source, kind), entry.weight))
    return sources


class Loader:
    """Batches without end. The place after the last batch given is all that a resume needs.

    Any chance is drawn from the seed and the place of the utterance in the epoch, so a window that
    was left in the middle is laid out again and the batches already given are skipped, without
    decoding them; the number of workers changes nothing. Of several processes (rank of world) each
    reads its own share of every epoch's visits. report: where what was left out is written.
    """

    def __init__(
        self,
        sources: Items[tuple[Source, float]],
        preparer: Preparer,
        settings: DataSettings,
        seed: int,
        rank: int = 0,
        world: int = 1,
        report: Path | None = None,
    ) -> None:
        self.preparer, self.settings, self.seed = preparer, settings, seed
        self.windows = Windows(sources, preparer, settings, seed, rank, world)
        self.drops = Drops(report, settings.bad_in_a_row)
        self.epoch = 0
        self._place = Place()
        self._given: int | None = 0  # batches of this epoch; None: it did not begin here
        self._made: Iterator[Made] | None = None
        if not self.windows.visits(0):
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
        if isinstance(self._made, InThread | InProcesses):
            self._made.close()
        self._made = None

    def _making(self) -> Iterator[Made]:
        settings = self.settings
        if settings.workers:
            return InProcesses(self.windows, self._place, settings.workers, settings.prefetch)
        if settings.prefetch:
            return InThread(in_line(self.windows, self._place), settings.prefetch)
        return in_line(self.windows, self._place)

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
                f"epoch {epoch}: none of {self.windows.visits(epoch)} utterances can be used; "
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
    return [collate(batch, preparer.vocab) for batch in batches]


def held_out_rows(
    lists: dict[str, ListSettings] | None, preparer: Preparer, settings: DataSettings, seed: int
) -> Iterator[tuple[Utterance, Sequence]]:
    """The first utterances of each held-out list that can be used, and their rows."""
    for source, _ in open_lists(lists, settings.schemes):
        for unit in range(min(len(source), settings.held_out_utterances)):
            for utterance in source.read(unit):
                if isinstance(utterance, Dropped):
                    continue
                rng = random.Random(f"{seed} held out {source.name} {unit}")
                row = preparer(utterance, rng)
                if not isinstance(row, Dropped):
                    yield utterance, row
