"""Where utterances come from: raw lists and tars, read a unit at a time, in any order.

Equal data gives equal utterances in every form; only the audio is a path or bytes as it is stored.
"""

import io
import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np

from osum_echat.data.files import Files
from osum_echat.data.tar import Member, walk
from osum_echat.data.tar_index import Index, load_index, open_tar, split_name
from osum_echat.errors import DataError
from osum_echat.records import Utterance

_SOUNDS = ("wav", "wav_")  # fields of a raw object that name sound files: wav, wav_1 ...


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


SOUNDS = ("flac", "mp3", "m4a", "ogg", "opus", "wav", "wma")
PACKED = (".gz", ".tgz")  # names of tars that can only be read from front to back
_NOTHING = "none"  # what the shard writer puts for a field that is missing
_OPEN_TARS, _INDEXES = 8, 64  # kept at hand
_RANGE_LIMIT = 1 << 30  # bytes of one utterance

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar; `lines`: the jsonl that holds the words of its audio (combine)."""

    tar: str
    lines: str | None = None


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
        self._tars: _Recent[str, BinaryIO] = _Recent(self._open, _OPEN_TARS)
        self._lines: _Recent[str, BinaryIO] = _Recent(self.files.open, _OPEN_TARS)
        self._missing: dict[Shard, str] = {}
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

    def read(self, unit: int) -> Iterator[Utterance | Dropped]:
        """One utterance, or why there is none."""
        place = int(np.searchsorted(self._ends, unit, side="right"))
        shard = self.shards[place]
        if shard in self._missing:
            yield Dropped("missing tar", self._missing[shard], shard.tar)
            return
        number = unit - (int(self._ends[place - 1]) if place else 0)
        index = self._indexes[shard]
        fault = index.faults.get(number)
        if fault is not None:
            file = shard.tar if fault.broken else None
            yield Dropped(fault.reason, f"{shard.tar}: {fault.detail}", file)
            return
        start, end, line_start, line_end = index.ranges[number].tolist()
        found = self._members(shard, start, end)
        if isinstance(found, Dropped):
            yield found
            return
        key, members = found
        where = f"{shard.tar} ({key})"
        record = _record(key, members, where, shard.tar)
        if shard.lines is not None and not isinstance(record, Dropped):
            record = self._with_line(record, shard, line_start, line_end)
        yield (
            record
            if isinstance(record, Dropped)
            else utterance_of(record, where, shard.tar, self.task)
        )

    def _count(self, shard: Shard) -> int:
        """How many units a tar has; one for a tar that is not there."""
        try:
            return len(self._indexes[shard])
        except DataError as error:
            self._missing[shard] = str(error)
            return 1

    def _index(self, shard: Shard) -> Index:
        return load_index(self.files, shard.tar, shard.lines)

    def _open(self, tar: str) -> BinaryIO:
        return open_tar(self.files, tar)

    def _members(
        self, shard: Shard, start: int, end: int
    ) -> tuple[str, dict[str, bytes]] | Dropped:
        """The key and the contents by postfix of the members in a range of a tar."""
        if end - start > _RANGE_LIMIT:
            return Dropped("too large", f"{shard.tar}: {end - start} bytes at {start}", shard.tar)
        try:
            tar = self._tars[shard.tar]
            tar.seek(start)
            data = tar.read(end - start)
        except (OSError, EOFError, DataError) as error:
            return Dropped("tar cannot be read", f"{shard.tar}: {error}", shard.tar)
        members: dict[str, bytes] = {}
        key = None
        for part in walk(io.BytesIO(data)):
            named = split_name(part.name) if isinstance(part, Member) and part.is_file else None
            if isinstance(part, Member) and named is not None:
                key = named[0]
                members[named[1]] = data[part.data : part.data + part.size]
        if key is None:
            return Dropped("damaged tar", f"{shard.tar}: nothing at byte {start}", shard.tar)
        return key, members

    def _with_line(
        self, record: dict[str, Any], shard: Shard, start: int, end: int
    ) -> dict[str, Any] | Dropped:
        """The record with the words of its line; the tar's own stand where the line has none."""
        assert shard.lines is not None
        where = f"{shard.lines} ({record['key']})"
        try:
            lines = self._lines[shard.lines]
            lines.seek(start)
            line = json_object(lines.read(end - start), where, shard.lines)
        except (OSError, DataError) as error:
            return Dropped("list cannot be read", f"{where}: {error}", shard.lines)
        if isinstance(line, Dropped):
            return line
        if line.get("key") != record["key"]:
            return Dropped("list and tar differ", f"{where}: {line.get('key')!r}", shard.lines)
        words = {name: value for name, value in line.items()
                 if value is not None and not _is_sound(name)}  # fmt: skip
        return {**record, **words}


def _is_sound(name: str) -> bool:
    return name == "wav" or (name.startswith("wav_") and name[4:].isdigit())


def _record(key: str, members: dict[str, bytes], where: str, file: str) -> dict[str, Any] | Dropped:
    """Members as the fields of a raw object; sounds are bytes."""
    record: dict[str, Any] = {"key": key}
    for postfix, contents in members.items():
        if postfix in SOUNDS:
            record["wav"] = contents
        elif _is_sound(postfix):
            record[postfix] = contents
        elif postfix in ("txt", "task", "extra") or postfix.startswith("txt_"):
            try:
                text = contents.decode("utf-8")
            except UnicodeDecodeError as error:
                return Dropped("text is not UTF-8", f"{where}: .{postfix}: {error}", file)
            if postfix == "extra":
                extra = _extra(text, where, file)
                if isinstance(extra, Dropped):
                    return extra
                record["extra"] = extra
            elif postfix != "task" or text != _NOTHING:
                record[postfix] = text
    return record


def _extra(text: str, where: str, file: str) -> dict[str, Any] | Dropped | None:
    if not text.strip() or text == _NOTHING:
        return None
    return json_object(text, f"{where}: .extra", file)


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
