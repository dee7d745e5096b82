"""Runs one step of a recipe: not again where it is done, its time added up over all its runs.

    python -m common_utils.tiny_world.step --book build/steps.json --makes FILE "corpus" -- COMMAND

A step is done when its command has succeeded and what it makes is there. When one runs after all,
those behind it in the book count as undone.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from osum_echat import cli
from osum_echat.errors import DataError
from osum_echat.files import write_json
from osum_echat.logs import logger
from osum_echat.settings import parse, read_mapping

WRITE_EVERY_S = 5.0  # what a kill can take from the time at most

log = logger(__name__)


@dataclass(slots=True)
class Entry:
    """What the book knows of a step."""

    command: tuple[str, ...]
    seconds: float = 0.0  # over all runs
    done: bool = False


class Book:
    """The steps of a recipe in their order, in a JSON file."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is no such book."""
        self.path = path
        raw = read_mapping(path, DataError, "remove it") if path.exists() else {}
        self.steps = {name: parse(Entry, one, f"{path}: {name}") for name, one in raw.items()}

    def is_done(self, name: str, command: Sequence[str], makes: Path | None) -> bool:
        """Whether the very same command has succeeded and what it made is there."""
        entry = self.steps.get(name)
        there = makes is None or makes.exists()
        return entry is not None and entry.done and entry.command == tuple(command) and there

    def begin(self, name: str, command: Sequence[str]) -> Entry:
        """The step's entry; it and those behind it are not done."""
        entry = self.steps.setdefault(name, Entry(()))
        entry.command = tuple(command)
        names = list(self.steps)
        for later in names[names.index(name) :]:
            self.steps[later].done = False
        return entry

    def save(self) -> None:
        """Write it, whole or not at all."""
        write_json(self.path, {name: asdict(entry) for name, entry in self.steps.items()})


def run(book: Book, name: str, command: Sequence[str], makes: Path | None) -> int:
    """Run the command unless it is done; returns how it ended. SIGTERM goes on to it."""
    if book.is_done(name, command, makes):
        log.info("%s: done before", name)
        return 0
    entry = book.begin(name, command)
    book.save()             # a kill from here on leaves it undone, whatever it was before
    before, start = entry.seconds, time.monotonic()
    try:
        running = subprocess.Popen(command)
    except OSError as error:
        raise DataError(f"{name}: {command[0]} cannot be run: {error.strerror}") from error
    held = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: running.terminate()),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C reaches both
    }
    ended = None
    while ended is None:
        try:
            ended = running.wait(WRITE_EVERY_S)
        except subprocess.TimeoutExpired:
            log.debug("%s: still running", name)
        entry.seconds = before + time.monotonic() - start
        entry.done = ended == 0 and (makes is None or makes.exists())
        book.save()
    for one, handler in held.items():
        signal.signal(one, handler)
    if ended == 0 and not entry.done:
        raise DataError(f"{name}: ended well, but {makes} is not there")
    return 128 - ended if ended < 0 else ended


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--book", type=Path, required=True, help="JSON file of all steps")
    parser.add_argument("--makes", type=Path, help="file or folder that is there when it is done")
    parser.add_argument("name", help="of the step, as the model card shows it")
    parser.add_argument("command", nargs="+", help="behind --")
    chosen = parser.parse_args(argv)
    return cli.run(
        "step", lambda: run(Book(chosen.book), chosen.name, chosen.command, chosen.makes)
    )


if __name__ == "__main__":
    sys.exit(main())
