"""Long jobs over many items: several processes, results in order, a kill loses next to nothing.

Results go to a journal beside the output as they come; started again, the same job goes on behind
the last complete line. When all is done the output appears whole, with a report of what was left
out; the journal goes. Started once more, a finished job makes again only the items whose input
has changed since, say a sound that was missing and is there now.
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

from common_utils.command import called, parser_of
from osum_echat import cli, logs, ray_pool
from osum_echat.data.sources import Dropped, Noted, json_object, record_lines
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

LOG = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """What one item became: lines of the output, what was left out, what is to be looked at."""

    lines: list[str]
    dropped: list[Dropped] = field(default_factory=list)
    count: int | None = None  # records, where a line stands for several of them
    noted: list[Noted] = field(default_factory=list)

    @classmethod
    def of(cls, found: Iterable[Mapping[str, Any] | str | Dropped | Noted]) -> "Made":
        """Of rows or lines, and what is told between them, as they come."""
        made = cls([])
        for one in found:
            if isinstance(one, Dropped):
                made.dropped.append(one)
            elif isinstance(one, Noted):
                made.noted.append(one)
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
    noted: dict[str, int] = field(default_factory=dict)  # used, but to be looked at

    def __str__(self) -> str:
        words = f"{self.path}: {self.written} records"
        for what, counts in (("left out", self.dropped), ("to be looked at", self.noted)):
            if counts:
                told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
                words += f"; {what}: {told}"
        told_in = f" (see {report_path(self.path).name})"
        return words + told_in if self.dropped or self.noted else words


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

    settings: what all items depend on; another one begins anew. fingerprint: of an item's input;
    another one makes that item again. inputs: files that are read and never written over.
    is_intact: whether what a line names is still there.
    """

    out: Path
    settings: str
    make: Callable[[Item], Made]
    fingerprint: Callable[[Item], str]
    inputs: Sequence[Path] = ()
    work: Work = Work()
    is_intact: Callable[[str], bool] = lambda line: True

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
    """Add --workers, --ray, --overwrite and --threads."""
    parser.add_argument("--workers", type=int,
                        help="processes (default: 1; with --ray one for each CPU)")  # fmt: skip
    cli.add_ray(parser)
    parser.add_argument("--overwrite", action="store_true",
                        help="make everything again instead of going on")  # fmt: skip
    cli.add_threads(parser)


def asked(make: Callable[..., Report], argv: Sequence[str] | None, **told: str) -> Report:
    """What a tool that is one job makes of the words of its command, see command.py."""
    parser = parser_of(make, told, ("work",))
    add_job_options(parser)
    given = parser.parse_args(argv)
    return called(cli.importable(make), given, work=Work.chosen(given))


def used(done: Report) -> Report:
    """The report. Raises InputError where nothing could be used."""
    if not done.written:
        raise InputError(f"{done}: nothing can be used")
    return done


def tool(name: str, make: Callable[..., Report], **told: str) -> Callable[..., int]:
    """The `main` of such a tool; it returns 0, or 2 for what the user can put right."""

    def main(argv: Sequence[str] | None = None) -> int:
        return cli.run(name, lambda: logs.out(str(used(asked(make, argv, **told)))))

    return main


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


def stamp(path: Path) -> tuple[str, int, int]:
    """Name, bytes and time of a file: what makes it the same input. Zeros: it is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return str(path), 0, 0
    return str(path), found.st_size, found.st_mtime_ns


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


def fingerprint(piece: Piece) -> str:
    """Of the lines of a piece and of every file that they name."""
    told: list[Any] = []
    for line in _lines(piece):
        told.append(line.decode(errors="replace"))
        raw = json_object(line, "", "")
        if isinstance(raw, dict):
            extra = raw.get("extra")
            values = [*raw.values(), *(extra.values() if isinstance(extra, dict) else ())]
            named = {one for one in values if isinstance(one, str) and "." in one[-6:]}
            told += [stamp(piece.path.parent / name) for name in sorted(named) if len(name) < 4096]
    return digest(told)


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


def is_begun(out: Path) -> bool:
    """Whether a job has made the output, or a part of it."""
    return any(path.exists() for path in (out, report_path(out), journal_path(out)))


def run(job: Job[Item], items: Sequence[Item], description: str) -> Report:
    """Do every item and write the lines of all, in their order, to `job.out`.

    Raises InputError for what cannot be written, or another process makes at this time.
    """
    try:
        marks = [f"{number} {job.fingerprint(item)}" for number, item in enumerate(items)]
        path = journal_path(job.out)
        whole = None if job.work.overwrite or path.exists() else _whole(job, marks)
        if whole is not None:
            LOG.info("%s: already made from the same input; --overwrite makes it again", job.out)
            return whole
        with Journal(path) as journal:
            done = _kept(job, journal)
            missing = [number for number, mark in enumerate(marks) if mark not in done]
            if done:
                LOG.info("%s: %d of %d parts are there already", job.out,
                         len(marks) - len(missing), len(marks))  # fmt: skip
            _make(job, items, marks, missing, journal, done, description)
            report = _finish(job, marks, done)
            path.unlink(missing_ok=True)
        return report
    except OSError as error:
        raise InputError(f"{job.out}: not written ({error}); free or change the place") from error


def _make(
    job: Job[Item], items: Sequence[Item], marks: Sequence[str], missing: Sequence[int],
    journal: Journal, done: dict[str, Any], description: str,
) -> None:  # fmt: skip
    """Make what is missing; each result goes to the journal, and into `done`, at once."""
    wanted = (items[number] for number in missing)
    pool = ray_pool.Pool(job.work.ray, job.work.workers)
    made = ray_pool.as_done(pool, partial(_as_it_is, job.make), wanted)
    for place, one in progress(made, description, len(missing)):
        number = missing[place]
        entry = {
            "item": marks[number], "lines": one.lines,
            "records": len(one.lines) if one.count is None else one.count,
            "dropped": [[each.reason, each.detail] for each in one.dropped],
            "noted": [[each.reason, each.detail] for each in one.noted],
        }  # fmt: skip
        journal.write([entry])
        done[marks[number]] = entry


def _as_it_is(make: Callable[[Item], Result]) -> Callable[[Item], Result]:
    return make


def _kept(job: Job[Item], journal: Journal) -> dict[str, Any]:
    """Results of earlier runs by the fingerprint of their item; the journal begins with them."""
    begin = {"settings": job.settings}
    entries = [entry for _, entry in read_journal(journal.path)]
    goes_on = entries[:1] == [begin] and not job.work.overwrite
    if goes_on:
        found = {entry["item"]: {"noted": []} | entry for entry in entries[1:]}
    else:
        found = {} if entries or job.work.overwrite else _finished(job)
    found = {mark: entry for mark, entry in found.items()
             if all(job.is_intact(line) for line in entry["lines"])}  # fmt: skip
    if not goes_on:
        journal.clear()
        journal.write([begin, *found.values()])
    return found


def _whole(job: Job[Item], marks: Sequence[str]) -> Report | None:
    """The report of a finished run over the very same items, all of it still there."""
    found = _finished(job)
    is_there = all(job.is_intact(line) for entry in found.values() for line in entry["lines"])
    if not found or set(found) != set(marks) or not is_there:
        return None
    return _report(job, found.values())


def _finished(job: Job[Item]) -> dict[str, Any]:
    """What a finished run of the same settings left, its lines taken from the output."""
    try:
        raw = json.loads(report_path(job.out).read_bytes())
        lines = job.out.read_bytes().decode().split("\n")[:-1]
        if raw["settings"] != job.settings or len(lines) != sum(row[1] for row in raw["items"]):
            return {}
        found: dict[str, Any] = {}
        left, notes, place = iter(raw["left_out"]), iter(raw["noted"]), 0
        for mark, count, written, dropped, noted in raw["items"]:
            found[mark] = {
                "item": mark, "lines": lines[place : place + count], "records": written,
                "dropped": [next(left) for _ in range(dropped)],
                "noted": [next(notes) for _ in range(noted)],
            }  # fmt: skip
            place += count
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return {}
    return found


def _report(job: Job[Item], entries: Iterable[dict[str, Any]]) -> Report:
    every = list(entries)

    def counts(what: str) -> dict[str, int]:
        return dict(Counter(reason for entry in every for reason, _ in entry[what]))

    written = sum(entry["records"] for entry in every)
    return Report(job.out, written, counts("dropped"), counts("noted"))


def _finish(job: Job[Item], marks: Sequence[str], done: dict[str, Any]) -> Report:
    """Write the output and its report."""
    entries = [done[mark] for mark in marks]
    with whole_file(job.out) as out:
        for entry in entries:
            out.writelines(f"{line}\n".encode() for line in entry["lines"])
    made = _report(job, entries)
    write_json(report_path(job.out), {
        "settings": job.settings, "written": made.written,
        "left_out": [one for entry in entries for one in entry["dropped"]],
        "noted": [one for entry in entries for one in entry["noted"]],
        "items": [[entry["item"], len(entry["lines"]), entry["records"], len(entry["dropped"]),
                   len(entry["noted"])] for entry in entries],
    })  # fmt: skip
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
