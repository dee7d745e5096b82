"""Where utterances come from: raw lists and tars, read a unit at a time, in any order.

Equal data gives equal utterances in every form; only the audio is a path or bytes as it is stored.
"""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from osum_echat.data.files import Files
from osum_echat.errors import DataError
from osum_echat.records import Utterance

_SOUNDS = ("wav", "wav_")  # fields of a raw object that name sound files: wav, wav_1 ...


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is left out: `reason` is counted, `detail` says where and what."""

    reason: str
    detail: str
    file: str | None = None  # the file that is at fault; None: nothing is broken


class Source(Protocol):
    """A named list of units, each holding one utterance or more; any unit can be read again."""

    name: str

    def __len__(self) -> int:
        """How many units there are."""
        ...

    def read(self, unit: int) -> Iterator[Utterance | Dropped]:
        """The utterances of a unit, always the same ones in the same order."""
        ...

    def stretches(self, units: int) -> np.ndarray:
        """(stretches + 1,) unit numbers that part the list into runs that are cheap to read.

        units: how many of one file a stretch should hold. The first is 0, the last the length.
        """
        ...


class RawSource:
    """Raw jsonl: a unit is a line. Only the places of the lines are kept in memory.

    Audio paths are relative to the folder of the list. `task` overrides the tags of the lines.
    """

    def __init__(
        self, name: str, path: Path | str, task: str | None = None, files: Files | None = None
    ) -> None:
        self.name = name
        self.task = task
        self.files = files or Files()
        self.place = str(path)
        self._is_remote = self.files.is_url(self.place)
        self._starts = line_starts(self.files, self.place)

    def __len__(self) -> int:
        return len(self._starts)

    def stretches(self, units: int) -> np.ndarray:
        """Every line by itself: each has its audio in a file of its own."""
        return np.arange(len(self) + 1)

    def read(self, unit: int) -> Iterator[Utterance | Dropped]:
        """The utterance of one line, or why there is none."""
        where = f"{self.place} (record {unit + 1})"
        try:
            with self.files.open(self.place) as lines:
                lines.seek(int(self._starts[unit]))
                line = lines.readline()
        except (OSError, DataError) as error:
            yield Dropped("list cannot be read", f"{where}: {error}", self.place)
            return
        raw = json_object(line, where, self.place)
        if isinstance(raw, Dropped):
            yield raw
            return
        try:
            self._fetch(raw)
        except DataError as error:
            yield Dropped("audio cannot be fetched", f"{where}: {error}", self.place)
            return
        yield utterance_of(raw, where, self.place, self.task)

    def _fetch(self, raw: dict[str, Any]) -> None:
        """Sounds that are URLs, as bytes. Raises DataError, ConfigError."""
        for name, value in raw.items():
            if name.startswith(_SOUNDS) and isinstance(value, str) and value:
                place = self.files.beside(self.place, value) if self._is_remote else value
                if self.files.is_url(place):
                    raw[name] = self.files.read(place)


def json_object(line: bytes | str, where: str, file: str) -> dict[str, Any] | Dropped:
    """The object of a line of jsonl or of a member of JSON."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Dropped("not JSON", f"{where}: {error}", file)
    if not isinstance(raw, dict):
        return Dropped("not an object", f"{where}: a JSON {type(raw).__name__}", file)
    return raw


def utterance_of(
    raw: dict[str, Any], where: str, file: str, task: str | None
) -> Utterance | Dropped:
    """The utterance of a raw object; its relative wav paths start at the file's folder."""
    try:
        utterance = Utterance.from_json(raw, where, Path(file).parent)
    except DataError as error:
        return Dropped("bad record", str(error), file)
    return replace(utterance, task=task) if task else utterance


def line_starts(files: Files, place: str) -> np.ndarray:
    """(records,) byte offsets of the lines of a jsonl that are not blank.

    Raises DataError where there are none.
    """
    starts = array("q")
    offset = 0
    try:
        with files.open(place) as lines:
            for line in lines:
                if line.strip():
                    starts.append(offset)
                offset += len(line)
    except DataError as error:
        raise DataError(
            f"list {error}; give the path of a jsonl file with one record a line"
        ) from error
    except OSError as error:
        raise DataError(f"list {place}: cannot be read ({error.strerror or error})") from error
    if not starts:
        raise DataError(f"list {place}: no records; one JSON object a line is needed")
    return np.frombuffer(starts, dtype=np.int64)
