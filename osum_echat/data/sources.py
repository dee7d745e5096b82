"""Where utterances come from: lists in files, read a unit at a time, in any order."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from osum_echat.errors import DataError
from osum_echat.records import Utterance


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is left out: `reason` is counted, `detail` says where and what."""

    reason: str
    detail: str


class Source(Protocol):
    """A named list of units, each holding one utterance or more; any unit can be read again."""

    name: str

    def __len__(self) -> int:
        """How many units there are."""
        ...

    def read(self, unit: int) -> Iterator[Utterance | Dropped]:
        """The utterances of a unit, always the same ones in the same order."""
        ...


class RawSource:
    """Raw jsonl: a unit is a line. Only the places of the lines are kept in memory.

    Audio paths are relative to the folder of the list. `task` overrides the tags of the lines.
    """

    def __init__(self, name: str, path: Path, task: str | None = None) -> None:
        self.name = name
        self.path = path
        self.task = task
        self._starts = _line_starts(path)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, unit: int) -> Iterator[Utterance | Dropped]:
        """The utterance of one line, or why there is none."""
        where = f"{self.path} (record {unit + 1})"
        with self.path.open("rb") as lines:
            lines.seek(int(self._starts[unit]))
            line = lines.readline()
        try:
            raw = json.loads(line)
        except ValueError as error:
            yield Dropped("not JSON", f"{where}: {error}")
            return
        if not isinstance(raw, dict):
            yield Dropped("not an object", f"{where}: a JSON {type(raw).__name__}")
            return
        try:
            utterance = Utterance.from_json(raw, where, self.path.parent)
        except DataError as error:
            yield Dropped("bad record", str(error))
            return
        yield replace(utterance, task=self.task) if self.task else utterance


def _line_starts(path: Path) -> np.ndarray:
    """(units,) byte offsets of the lines that are not blank."""
    starts = []
    offset = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    starts.append(offset)
                offset += len(line)
    except OSError as error:
        raise DataError(
            f"list {path}: {error.strerror}; give the path of a jsonl file with one record a line"
        ) from error
    if not starts:
        raise DataError(f"list {path}: no records; one JSON object a line is needed")
    return np.array(starts, dtype=np.int64)
