"""Long jobs over many items: several processes, results in order, a kill loses next to nothing.

Results go to a journal beside the output as they come; started again, the same job goes on behind
the last complete line. When all is done the output appears whole, with a report of what was left
out; the journal goes. Of other settings or another input all is made again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

from osum_echat import cli, logs, ray_pool
from osum_echat.data.sources import Dropped, json_object, record_lines
from osum_echat.errors import InputError
from osum_echat.files import (
    Files,
    Journal,
    check_apart,
    read_journal,
    sha256_of,
    whole_file,
    write_json,
)
from osum_echat.logs import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
Row = Mapping[str, Any] | str | Dropped

LOG = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """What one item became: lines of the output, and what was left out."""

    lines: list[str]
    dropped: list[Dropped] = field(default_factory=list)
    count: int | None = None  # records, where a line stands for several of them

    @classmethod
    def of(cls, found: Iterable[Row]) -> "Made":
        """Of rows or lines as they come."""
        made = cls([])
        for one in found:
            if isinstance(one, Dropped):
                made.dropped.append(one)
            else:
                line = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
                made.lines.append(line)
        return made


@dataclass(frozen=True, slots=True)
class Report:
    """What a finished job did: records written, and how many were left out for which reason."""

    path: Path
    written: int
    dropped: dict[str, int]

    @classmethod
    def of(cls, path: Path, raw: Mapping[str, Any]) -> "Report":
        """By what lies beside the output; of nothing that can be used: InputError."""
        left_out = raw["left_out"]
        made = cls(path, raw["written"], dict(Counter(reason for reason, _ in left_out)))
        if not made.written:
            first = f"; the first: {left_out[0][1]}" if left_out else ""
            raise InputError(f"{made}: nothing can be used{first}")
        return made

    def __str__(self) -> str:
        told = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items())
        return f"{self.path}: {self.written} records{told and f'; left out: {told}'}"


@dataclass(frozen=True, slots=True)
class Work:
    """How a job is done. workers: None: this process, or with ray, the address of a cluster, as
    many as fit; overwrite: make everything again instead of going on."""

    workers: int | None = None
    overwrite: bool = False
    ray: str | None = None

    @classmethod
    def chosen(cls, given: argparse.Namespace) -> "Work":
        """By the options of `add_job_options`."""
        return cls(given.workers, given.overwrite, given.ray)


@dataclass(frozen=True, slots=True)
class Job(Generic[Item]):
    """One output made of many items.

    settings: all that they depend on, input lists among it, as `digest` gives it: another one
    begins anew. inputs: files that are read and never written over.
    """

    out: Path
    settings: str
    make: Callable[[Item], Made]
    inputs: Sequence[Path] = ()
    work: Work = Work()

    def __post_init__(self) -> None:
        if self.work.workers is not None and self.work.workers < 1:
            raise InputError(f"workers {self.work.workers}: give 1 or more")
        check_apart(self.out, self.inputs)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of a raw list: those from byte `start` on; the first is number `first`."""

    path: Path
    start: int
    first: int  # counted from 1, blank lines left out
    count: int


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add --workers, --ray and --overwrite."""
    parser.add_argument("--workers", type=int,
                        help="processes (default: 1; with --ray one for each CPU)")  # fmt: skip
    cli.add_ray(parser)
    parser.add_argument("--overwrite", action="store_true",
                        help="make everything again instead of going on")  # fmt: skip


def digest(*values: Any) -> str:
    """A short name of plain values; a Path stands for the content of its file."""
    told = sha256()
    for value in values:
        if isinstance(value, Path):
            try:
                told.update(bytes.fromhex(sha256_of(value)))
            except OSError as error:
                raise InputError(f"{value}: cannot be read ({error.strerror}); check the path"
                                 ) from error  # fmt: skip
        else:
            told.update(json.dumps(value).encode())
        told.update(b"\0")
    return told.hexdigest()[:16]


def pieces(path: Path, size: int) -> list[Piece]:
    """The list cut into pieces of `size` records.

    Raises InputError for the size, DataError for a list that cannot be read or holds no records.
    """
    if size < 1:
        raise InputError(f"{size} records a piece: give 1 or more")
    starts, _ = record_lines(Files(), str(path))
    return [
        Piece(path, int(starts[first]), first + 1, min(size, len(starts) - first))
        for first in range(0, len(starts), size)
    ]


def records(piece: Piece) -> Iterator[tuple[str, dict[str, Any] | Dropped]]:
    """Where each record stands, for messages, and its object or why it has none."""
    for number, line in enumerate(_lines(piece), piece.first):
        where = f"{piece.path} (record {number})"
        yield where, json_object(line, where, str(piece.path))


def _lines(piece: Piece) -> Iterator[bytes]:
    with piece.path.open("rb") as file:
        file.seek(piece.start)
        left = piece.count
        while left:
            line = file.readline()
            if not line:
                raise InputError(f"list {piece.path}: changed while it was read; start again")
            if line.strip():
                left -= 1
                yield line


def report_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.report.json")


def journal_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.journal")


def run(job: Job[Item], items: Sequence[Item], description: str) -> Report:
    """Do every item and write the lines of all, in their order, to `job.out`.

    Raises InputError for what cannot be written, or another process makes at this time.
    """
    begin, path = {"settings": job.settings, "items": len(items)}, journal_path(job.out)
    finished = None if job.work.overwrite or path.exists() else _finished(job)
    if finished is not None:
        LOG.info("%s: already made from the same input; --overwrite makes it again", job.out)
        return finished
    try:
        with Journal(path) as journal:
            entries = [] if job.work.overwrite else [entry for _, entry in read_journal(path)]
            if entries[:1] != [begin]:
                journal.clear()
                journal.write([begin])
            done = {entry["item"]: entry for entry in entries[1:] if entries[0] == begin}
            if done:
                LOG.info("%s: %d of %d parts are there already", job.out, len(done), len(items))
            missing = [number for number in range(len(items)) if number not in done]
            pool = ray_pool.Pool(job.work.ray, job.work.workers)
            wanted = (items[number] for number in missing)
            made = ray_pool.as_done(pool, partial(_as_it_is, job.make), wanted)
            for place, one in progress(made, description, len(missing)):
                done[missing[place]] = entry = _entry(missing[place], one)
                journal.write([entry])
            written = sum(entry["records"] for entry in done.values())
            if not written:     # the next time all is tried again
                path.unlink()
            rows = (row for number in range(len(items)) for row in _rows(done[number]))
            report = write_list(job.out, rows, (), job.settings, written)
            path.unlink()
        return report
    except OSError as error:
        raise InputError(f"{job.out}: not written ({error}); free or change the place") from error


def _entry(number: int, made: Made) -> dict[str, Any]:
    """An item's line of the journal."""
    return {
        "item": number, "lines": made.lines,
        "records": len(made.lines) if made.count is None else made.count,
        "left_out": [[one.reason, one.detail] for one in made.dropped],
    }  # fmt: skip


def _rows(entry: dict[str, Any]) -> Iterator[Row]:
    yield from entry["lines"]
    yield from (Dropped(reason, detail) for reason, detail in entry["left_out"])


def _as_it_is(make: Callable[[Item], Result]) -> Callable[[Item], Result]:
    return make


def _finished(job: Job[Any]) -> Report | None:
    """That of a run of the same settings whose output is there."""
    try:
        raw = json.loads(report_path(job.out).read_bytes())
        same = raw["settings"] == job.settings and job.out.is_file()
        return Report.of(job.out, raw) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_list(
    out: Path, rows: Iterable[Row], inputs: Iterable[Path] = (), settings: str = "",
    written: int | None = None,
) -> Report:  # fmt: skip
    """Write a list and its report in one go; nothing where no row can be used, an InputError then.

    settings: as those of a Job; written: how many records, where a row stands for several of them.
    """
    check_apart(out, inputs)
    count, left_out = 0, list[list[str]]()
    with whole_file(out) as file:
        for row in rows:
            if isinstance(row, Dropped):
                left_out.append([row.reason, row.detail])
                continue
            line = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
            try:
                file.write(f"{line}\n".encode())
                count += 1
            except UnicodeEncodeError as error:
                left_out.append(["text is not Unicode", f"{row!a:.200}: {error}"])
        report = {"settings": settings, "written": count if written is None else written,
                  "left_out": left_out}  # fmt: skip
        made = Report.of(out, report)
    write_json(report_path(out), report)
    return made


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """The results in the order of the items; one worker is this very process."""
    early: dict[int, Result] = {}
    wanted = 0
    pool = ray_pool.Pool(None, workers)
    for number, result in ray_pool.as_done(pool, partial(_as_it_is, function), items):
        early[number] = result
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1
