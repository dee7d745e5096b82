"""The list of a batch job: every utterance of raw lists, shards, combine pairs or a data yaml."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat.data.manifest import Entry, open_source, read_manifest
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.records import Utterance

YAML = (".yaml", ".yml")


class UtteranceList:
    """The utterances of a path in order, each by its number; none is read before it is asked for.

    place: whatever `data.manifest.open_source` reads, or a YAML of names with `path` and `weight`;
    here each entry is read once, and weight 0 leaves it out. limit: only so many, from the first.
    Raises DataError, ConfigError for what is not there, InputError for a limit below 1.
    """

    def __init__(self, place: str, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"--limit {limit}: give 1 or more")
        self.entries = _entries(place)
        self.sources = [open_source(entry.name, entry.path) for entry in self.entries]
        self._ends = np.cumsum([len(source) for source in self.sources])
        self._length = min(int(self._ends[-1]), limit or int(self._ends[-1]))

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> Utterance | Dropped:
        """One utterance, or why there is none."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[place - 1]) if place else 0
        return next(self.sources[place].read(index - first))

    def identity(self) -> list[dict[str, Any]]:
        """What tells this list from another: names, lengths, and digests of the list files."""
        return [
            {"name": entry.name, "utterances": len(source), "sha256": _digest(Path(entry.path))}
            for entry, source in zip(self.entries, self.sources, strict=True)
        ]


def _entries(place: str) -> Sequence[Entry]:
    if not place.endswith(YAML):
        return [Entry(Path(place).stem, place)]
    entries = [entry for entry in read_manifest(place) if entry.weight > 0]
    if not entries:
        raise InputError(f"--data {place}: every entry has weight 0; nothing is left to answer")
    return entries


def _digest(path: Path) -> str | None:
    """Of a list file; None for a folder. Tars are told by how many utterances they hold."""
    if not path.is_file() or path.suffix in (".tar", ".gz", ".tgz"):
        return None
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
