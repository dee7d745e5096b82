"""Long jobs over many items: several processes, results in order, a kill loses next to nothing.

Results go to a journal beside the output as they come; started again, the same job goes on behind
the last complete line. When all is done, the output appears whole, with a report of what was left
out; the journal goes.
"""

import json
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.files import whole_file, write_json
from osum_echat.logs import logger, progress

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items handed out for each process, so that none waits for the slowest

LOG = logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """What one item became: lines of the output, and what was left out."""

    lines: list[str]
    dropped: list[Dropped] = field(default_factory=list)
    count: int | None = None  # records, where a line stands for several of them

    @property
    def records(self) -> int:
        return len(self.lines) if self.count is None else self.count


@dataclass(frozen=True, slots=True)
class Report:
    """What a finished job did: records written, and how many were left out for which reason."""

    path: Path
    written: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        words = f"{self.path}: {self.written} records"
        left = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items())
        return f"{words}; left out: {left} (see {report_path(self.path).name})" if left else words


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job's output goes. plan: what it depends on; a change of it starts from nothing."""

    out: Path
    plan: str
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"workers {self.workers}: give 1 or more")

    @classmethod
    def of(cls, arguments: Namespace, out: Path, plan: str) -> "Job":
        """The job of a door's arguments."""
        return cls(out, plan, arguments.workers, arguments.overwrite)


def plan_of(**settings: Any) -> str:
    """A digest of settings; a Path stands for the content of its file."""
    digest = sha256()
    for name, value in sorted(settings.items()):
        digest.update(f"{name}=".encode())
        digest.update(_content(value) if isinstance(value, Path) else json.dumps(value).encode())
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    digest = sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.digest()


def report_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.report.json")


def run(
    job: Job,
    function: Callable[[Item], Made],
    items: Items[Item],
    description: str,
    is_intact: Callable[[str], bool] = lambda line: True,
) -> Report:
    """Do every item and write the lines of all, in their order, to `job.out`.

    is_intact: whether what a line of an earlier run names is still there. An output that the same
    job has finished is left as it is. Raises InputError for what cannot be written.
    """
    earlier = None if job.overwrite else _finished(job, is_intact)
    if earlier is not None:
        LOG.info("%s: already made from the same input; --overwrite makes it again", job.out)
        return earlier
    try:
        return _do(job, function, items, description, is_intact)
    except OSError as error:
        raise InputError(f"{job.out}: not written ({error}); free or change the place") from error


def _do(
    job: Job,
    function: Callable[[Item], Made],
    items: Items[Item],
    description: str,
    is_intact: Callable[[str], bool],
) -> Report:
    """What an unfinished job still lacks, then its output and report."""
    journal = job.out.with_name(f".{job.out.name}.journal")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    done = 0 if job.overwrite else _resume(journal, job.plan, is_intact)
    if done:
        LOG.info("%s: going on after %d of %d parts", job.out, done, len(items))
    with journal.open("ab" if done else "wb") as kept:
        if not done:
            kept.write(_line({"plan": job.plan}))
        rest = in_order(function, islice(items, done, None), job.workers)
        for made in progress(rest, description, len(items) - done):
            left = [[one.reason, one.detail] for one in made.dropped]
            kept.write(_line({"lines": made.lines, "dropped": left, "records": made.records}))
            kept.flush()
    report = _finish(job, journal)
    journal.unlink()
    return report


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """The results in the order of the items; one worker is this very process."""
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was ended from outside (out of memory?); start again, with "
                "fewer workers: what is done is kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """Each process computes on one thread, and leaves Ctrl-C to the one that started it."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _finished(job: Job, is_intact: Callable[[str], bool]) -> Report | None:
    """The report of the same job, if it was finished and its output is there."""
    try:
        raw = json.loads(report_path(job.out).read_bytes())
        with job.out.open(encoding="utf-8") as lines:
            same = raw["plan"] == job.plan and all(is_intact(line.strip()) for line in lines)
        counts = Counter(reason for reason, _ in raw["left_out"])
        return Report(job.out, int(raw["written"]), dict(counts)) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _resume(journal: Path, plan: str, is_intact: Callable[[str], bool]) -> int:
    """How many items a journal of this plan holds; its torn last line is cut off."""
    entries, end = 0, 0
    try:
        with journal.open("r+b") as kept:
            for line in kept:
                entry = json.loads(line) if line.endswith(b"\n") else None
                if entry is None or (entries == 0 and entry.get("plan") != plan):
                    break
                if not all(is_intact(one) for one in entry.get("lines", ())):
                    break
                entries, end = entries + 1, end + len(line)
            kept.truncate(end)
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise InputError(f"{journal}: damaged; remove it, or give --overwrite") from error
    return max(0, entries - 1)


def _finish(job: Job, journal: Path) -> Report:
    """Turn the journal into the output and its report."""
    written, left_out = 0, []
    with journal.open("rb") as kept, whole_file(job.out) as out:
        next(kept)
        for entry in map(json.loads, kept):
            out.writelines(f"{line}\n".encode() for line in entry["lines"])
            written += entry["records"]
            left_out += entry["dropped"]
    whole = {"plan": job.plan, "written": written, "left_out": left_out}
    write_json(report_path(job.out), whole)
    return Report(job.out, written, dict(Counter(reason for reason, _ in left_out)))
