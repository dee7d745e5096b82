"""Results as they come: each process adds to a file of its own, and nothing written is lost.

OUT/parts/part-00003.jsonl belongs to process 3 and is locked while that lives. Lines go to disk a
batch at a time; a last line that a kill cut short is dropped, and its utterance answered again.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from osum_echat.errors import InputError
from osum_echat.logs import logger

Record = dict[str, Any]

LOG = logger(__name__)
_PATIENCE_S = 15.0  # for a process of a killed run to let go of its part
_POLL_S = 0.1


class Part:
    """The part of one process, open to add to. Raises InputError where another process holds it."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"part-{rank:05d}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            _lock(self._file, self.path)
            self._cut_torn_line()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out"
            ) from error

    def write(self, records: Sequence[Record]) -> None:
        """Add records; they are on disk when this returns."""
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records]
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(
                f"{self.path}: not written ({error.strerror}); free or change the place, then "
                "start again: what is done is kept"
            ) from error

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _cut_torn_line(self) -> None:
        """Drop what stands behind the last end of line."""
        end = self._file.seek(0, os.SEEK_END)
        whole = _end_of_lines(self._file, end)
        if whole < end:
            LOG.warning("%s: the last line was cut short; it is made again", self.path)
            self._file.truncate(whole)


def _end_of_lines(file: BinaryIO, end: int) -> int:
    """The byte behind the last end of line before `end`."""
    while end > 0:
        start = max(0, end - (1 << 16))
        file.seek(start)
        last = file.read(end - start).rfind(b"\n")
        if last >= 0:
            return start + last + 1
        end = start
    return 0


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep others off this part until the process ends, however it ends."""
    last = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                LOG.warning("%s: this file system knows no locks; start this job once only", path)
                return
            if time.monotonic() > last:
                raise InputError(
                    f"{path}: another process is writing here; wait for it or end it, or choose "
                    "another --out"
                ) from error
        time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the result of one utterance stands."""

    path: Path
    offset: int  # bytes
    failed: bool


def find_results(folder: Path) -> dict[int, Place]:
    """The results in all parts by the number of their utterance.

    Where there are several of one utterance, one that did not fail counts before one that did.
    """
    found: dict[int, Place] = {}
    for path in part_files(folder):
        for offset, line in _whole_lines(path):
            try:
                record = json.loads(line)
                index, failed = int(record["index"]), record.get("error") is not None
            except (ValueError, KeyError, TypeError, AttributeError):
                LOG.warning("%s: no result at byte %d; it is left out", path, offset)
                continue
            if index not in found or not failed:
                found[index] = Place(path, offset, failed)
    return found


def read_results(found: Mapping[int, Place], length: int) -> Iterator[Record]:
    """The results of the first `length` utterances, as far as they are there, in that order."""
    files = {path: path.open("rb") for path in {place.path for place in found.values()}}
    try:
        for index in range(length):
            place = found.get(index)
            if place is not None:
                files[place.path].seek(place.offset)
                yield json.loads(files[place.path].readline())
    finally:
        for file in files.values():
            file.close()


def part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.jsonl"))


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each line that has its end."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


class Tally:
    """Counts the lines that parts have grown by since it was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes = {path: path.stat().st_size for path in part_files(folder)}

    def new(self) -> int:
        """Lines since the last call."""
        count = 0
        for path in part_files(self.folder):
            start = self._sizes.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                grown = file.read()
            count += grown.count(b"\n")
            self._sizes[path] = start + len(grown)
        return count
