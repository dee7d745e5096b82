"""Runs one step of a recipe: not again where it is done, its time added up over all its runs.

    python -m common_utils.tiny_world.step --book build/steps.json --makes FILE "corpus" -- COMMAND

A step is done when its command has succeeded and what it makes is there. When one runs after all,
those behind it in the book count as undone. The model's card shows the book's times.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from osum_echat import cli
from osum_echat.errors import DataError
from osum_echat.files import write_json
from osum_echat.logs import logger
from osum_echat.settings import read_mapping

CARD_FILE = "README.md"
TIMES = "## Time of each step"
TITLE = """# A model of the tiny world

Made by the recipe of the Makefile from synthetic speech; it knows nothing but its small world.
"""

log = logger(__name__)


def run(book: Path, name: str, command: Sequence[str], makes: Path | None) -> int:
    """Run the command unless it is done; returns how it ended. SIGTERM goes on to it.

    book: a JSON file of the steps in their order: command, seconds over all runs, and done.
    """
    steps = read_mapping(book, DataError, "remove it") if book.exists() else {}
    entry = steps.setdefault(name, {"seconds": 0.0, "done": False})
    if entry["done"] and entry["command"] == [*command] and (makes is None or makes.exists()):
        log.info("%s: done before", name)
        return 0
    names = list(steps)
    for later in names[names.index(name) :]:
        steps[later]["done"] = False
    entry["command"] = [*command]
    write_json(book, steps)             # a kill from here on leaves it undone
    start = time.monotonic()
    try:
        running = subprocess.Popen(command)
    except OSError as error:
        raise DataError(f"{name}: {command[0]} cannot be run: {error.strerror}") from error
    held = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: running.terminate()),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C reaches both
    }
    ended = running.wait()
    for one, handler in held.items():
        signal.signal(one, handler)
    entry["seconds"] += time.monotonic() - start
    entry["done"] = ended == 0 and (makes is None or makes.exists())
    write_json(book, steps)
    if ended == 0 and not entry["done"]:
        raise DataError(f"{name}: ended well, but {makes} is not there")
    return 128 - ended if ended < 0 else ended


def write_card(out: Path, books: Sequence[Path], title: str = TITLE) -> None:
    """Write the card of the model in `out`; of one that is there only the times are made new."""
    path = out / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else title
    before, _, rest = text.partition(TIMES)
    _, mark, behind = rest.partition("\n## ")
    lines = [f"| {name} | {one['seconds'] / 60:.1f} |\n" for book in books
             for name, one in read_mapping(book, DataError).items()]  # fmt: skip
    times = f"{TIMES}\nBy the clock, over all runs.\n\n| step | minutes |\n|---|---|\n"
    path.write_text("".join((before.rstrip(), "\n\n", times, *lines, mark, behind)), "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--book", type=Path, required=True, help="JSON file of all steps")
    parser.add_argument("--makes", type=Path, help="file or folder that is there when it is done")
    parser.add_argument("name", help="of the step, as the model card shows it")
    parser.add_argument("command", nargs="+", help="behind --")
    chosen = parser.parse_args(argv)
    return cli.run("step", lambda: run(chosen.book, chosen.name, chosen.command, chosen.makes))


if __name__ == "__main__":
    sys.exit(main())
