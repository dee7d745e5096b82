"""Where utterances come from: raw lists and tars, read a unit at a time, in any order.

Equal data gives equal utterances in every form; only the audio is a path or bytes as it is stored.
"""

import json
import os
import re
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np

from osum_echat.data.tar import SOUNDS, Index, is_sound, is_text, load_index, open_tar
from osum_echat.errors import DataError, OsumError
from osum_echat.files import Files, text_lines
from osum_echat.logs import logger
from osum_echat.records import Utterance

LOG = logger(__name__)
PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")  # tars that are read from front to back
_NOTHING = "none"  # what the shard writer puts for a field that is missing
_OPEN_TARS, _INDEXES = 8, 64  # kept at hand
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a character

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is left out: `reason` is counted, `detail` says where and what."""

    reason: str
    detail: str
    file: str | None = None  # the file that is at fault; None: nothing is broken


@dataclass(frozen=True, slots=True)
class Noted:
    """Something to be told of a record that is used all the same; counted by `reason`."""

    reason: str
    detail: str


class Source(Protocol):
    """A named list of units, an utterance each; any unit can be read again, in any process."""

    name: str

    def __len__(self) -> int:
        """How many units there are."""
        ...

    def read(self, unit: int) -> Utterance | Dropped:
        """The utterance of a unit, always the same one, or why there is none."""
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
        self._starts, self._numbers = record_lines(self.files, self.place)

    def __len__(self) -> int:
        return len(self._starts)

    def stretches(self, units: int) -> np.ndarray:
        """Every line by itself: each has its audio in a file of its own."""
        return np.arange(len(self) + 1)

    def read(self, unit: int) -> Utterance | Dropped:
        """The utterance of one line, or why there is none."""
        where = f"{self.place} (record {unit + 1}, line {self._numbers[unit]})"
        try:
            with self.files.open(self.place) as lines:
                lines.seek(int(self._starts[unit]))
                line = lines.readline()
        except (OSError, DataError) as error:
            return Dropped("list cannot be read", f"{where}: {error}", self.place)
        raw = json_object(line, where, self.place)
        if isinstance(raw, Dropped):
            return raw
        try:
            self._fetch(raw)
        except OsumError as error:
            return Dropped("audio cannot be fetched", f"{where}: {error}", self.place)
        return utterance_of(raw, where, self.place, self.task)

    def _fetch(self, raw: dict[str, Any]) -> None:
        """Sounds that are URLs, as bytes. Raises DataError, ConfigError."""
        for name, value in raw.items():
            if is_sound(name) and isinstance(value, str) and value:
                place = self.files.beside(self.place, value) if self._is_remote else value
                if self.files.is_url(place):
                    raw[name] = self.files.read(place)


def json_object(line: bytes, where: str, file: str) -> dict[str, Any] | Dropped:
    """The object of a line of jsonl or of a member of JSON."""
    (read,) = text_lines([line])
    if read.text is None:
        return Dropped("text is not UTF-8", f"{where}: {read.problem}", file)
    try:
        raw = json.loads(read.text)
        if _HALF.search(read.text):
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"half a character, {error.object[error.start]!a}"
        return Dropped("text is not Unicode", f"{where}: {half}", file)
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


def record_lines(files: Files, place: str) -> tuple[np.ndarray, np.ndarray]:
    """(records,) byte offsets and numbers, from 1, of the lines of a jsonl that are not blank.

    Raises DataError where there are none.
    """
    starts, numbers = array("q"), array("l")
    offset = 0
    try:
        with files.open(place) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    starts.append(offset)
                    numbers.append(number)
                offset += len(line)
    except DataError as error:
        raise DataError(
            f"list {error}; give the path of a jsonl file with one record a line"
        ) from error
    except OSError as error:
        raise DataError(f"list {place}: cannot be read ({error.strerror or error})") from error
    if not starts:
        raise DataError(f"list {place}: no records; one JSON object a line is needed")
    return np.frombuffer(starts, dtype=np.int64), np.frombuffer(numbers, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar; `lines`: the jsonl that holds the words of its audio (combine)."""

    tar: str
    lines: str | None = None
    problem: str | None = None  # why its line in the list names no tar


class TarSource:
    """Shards and combine pairs of one list: a unit is an utterance, wherever its tar ends.

    Only the number of utterances of each tar is kept in memory. What is lost in a damaged tar is a
    unit too, so that it is counted. `task` overrides the tags in the tars.
    """

    def __init__(
        self, name: str, shards: Items[Shard], task: str | None = None, files: Files | None = None
    ) -> None:
        self.name = name
        self.shards = tuple(shards)
        self.task = task
        self.files = files or Files()
        self._indexes: _Recent[Shard, Index] = _Recent(self._index, _INDEXES)
        self._tars: _Recent[str, BinaryIO] = _Recent(partial(open_tar, self.files), _OPEN_TARS)
        self._lines: _Recent[str, BinaryIO] = _Recent(self.files.open, _OPEN_TARS)
        self._missing: dict[Shard, str] = {}
        self._held: dict[Shard, Index] = {}  # that could be kept nowhere
        counts = [self._count(shard) for shard in self.shards]
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not counts:
            raise DataError(f"list {name}: no tars in it; give one path of a tar a line")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def stretches(self, units: int) -> np.ndarray:
        """Runs of `units` utterances of one tar; a packed tar is read from front to back."""
        parts, start = [], 0
        for shard, end in zip(self.shards, self._ends.tolist(), strict=True):
            size = end - start if shard.tar.endswith(PACKED) else units
            parts.append(np.arange(start, end, max(size, 1)))
            start = end
        return np.concatenate([*parts, [start]])

    def read(self, unit: int) -> Utterance | Dropped:
        """One utterance, or why there is none."""
        place = int(np.searchsorted(self._ends, unit, side="right"))
        shard = self.shards[place]
        if shard in self._missing:
            return Dropped("missing tar", self._missing[shard], shard.tar)
        number = unit - (int(self._ends[place - 1]) if place else 0)
        index = self._indexes[shard]
        fault = index.faults.get(number)
        if fault is not None:
            file = shard.tar if fault.broken else None
            return Dropped(fault.reason, f"{shard.tar}: {fault.detail}", file)
        where = f"{shard.tar} ({index.keys[number]})"
        record = self._record(shard, index, number, where)
        if isinstance(record, Dropped):
            return record
        return utterance_of(record, where, shard.tar, self.task)

    def _count(self, shard: Shard) -> int:
        """How many units a tar has; one for a tar that is not there."""
        try:
            if shard.problem is not None:
                raise DataError(shard.problem)
            return len(self._indexes[shard])
        except OsumError as error:
            self._missing[shard] = str(error)
            return 1

    def _index(self, shard: Shard) -> Index:
        if shard in self._held:
            return self._held[shard]
        index, is_kept = load_index(self.files, shard.tar, shard.lines)
        if not is_kept:
            if not self._held:
                LOG.warning("%s: no index can be kept beside it or in a cache; memory holds it",
                            shard.tar)  # fmt: skip
            self._held[shard] = index
        return index

    def _record(
        self, shard: Shard, index: Index, unit: int, where: str
    ) -> dict[str, Any] | Dropped:
        """A unit as the fields of a raw object; sounds are bytes."""
        try:
            members = index.read(self._tars[shard.tar], unit)
        except DataError as error:
            return Dropped("tar has changed", f"{shard.tar}: {error}; remove its index", shard.tar)
        except (OSError, EOFError, OsumError) as error:
            return Dropped("tar cannot be read", f"{shard.tar}: {error}", shard.tar)
        record = _fields(index.keys[unit], members, where, shard.tar)
        if shard.lines is None or isinstance(record, Dropped):
            return record
        return self._with_line(record, shard.lines, index.units[unit, 2:].tolist())

    def _with_line(
        self, record: dict[str, Any], file: str, place: list[int]
    ) -> dict[str, Any] | Dropped:
        """The record with the words that its line in the jsonl has."""
        start, end, total = place
        where = f"{file} ({record['key']})"
        try:
            lines = self._lines[file]
            lines.seek(start)
            data = lines.read(end - start)
        except (OSError, OsumError) as error:
            return Dropped("list cannot be read", f"{where}: {error}", file)
        if zlib.crc32(data) != total:
            return Dropped("list has changed", f"{where}: since it was indexed", file)
        line = json_object(data, where, file)
        if isinstance(line, Dropped):
            return line
        words = {name: value for name, value in line.items()
                 if value is not None and not is_sound(name)}  # fmt: skip
        return {**record, **words}


def _fields(key: str, members: dict[str, bytes], where: str, file: str) -> dict[str, Any] | Dropped:
    record: dict[str, Any] = {"key": key}
    for postfix, contents in members.items():
        if is_sound(postfix):
            record["wav" if postfix in SOUNDS else postfix] = contents
        elif is_text(postfix):
            value = _text(postfix, contents, f"{where}: .{postfix}", file)
            if isinstance(value, Dropped):
                return value
            if value is not None:
                record[postfix] = value
    return record


def _text(
    postfix: str, contents: bytes, where: str, file: str
) -> str | dict[str, Any] | Dropped | None:
    """What a member of words says; None for one that says nothing."""
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Dropped("text is not UTF-8", f"{where}: {error}", file)
    if "\0" in text:  # what a size that is too large makes of the zeros behind a member
        return Dropped("zeros in a text", where, file)
    if postfix in ("task", "extra") and text.strip() in ("", _NOTHING):
        return None
    return json_object(contents, where, file) if postfix == "extra" else text


class _Recent(Generic[Key, Value]):
    """The values made last, each made when first asked for. A forked process makes its own."""

    def __init__(self, make: Callable[[Key], Value], limit: int) -> None:
        self.make, self.limit = make, limit
        self._process = os.getpid()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __getitem__(self, key: Key) -> Value:
        if os.getpid() != self._process:  # open files share their place with the parent's
            self._process, self._values = os.getpid(), OrderedDict()
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = self.make(key)
        if len(self._values) > self.limit:
            self._values.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.make, self.limit)
