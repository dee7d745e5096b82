"""Where words go: logs and progress to standard error, results to standard output."""
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_ROOT = "osum_echat"
READER_GONE = 141                       # 128 + SIGPIPE


def is_first_rank() -> bool:
    """True in a single process and in the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is usually `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup(quiet: bool = False) -> None:
    """Send the package's logs to standard error; warnings only when quiet or off the first rank."""
    for stream in (sys.stdout, sys.stderr):     # a terminal without a letter gets its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    root = logging.getLogger(_ROOT)
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        form = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S")
        handler.setFormatter(form)
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(logging.WARNING if quiet or not is_first_rank() else logging.INFO)


def out(text: str) -> None:
    """Write one result to standard output: the only way there from inside the package."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:             # head, or whoever else read it, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(READER_GONE) from None


def out_json(value: object) -> None:
    """Write one result as a line of JSON, its letters as they are where the terminal has them."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value)
    out(text)


def progress(
    items: Iterable[Item], description: str, total: int | None = None
) -> Iterator[Item]:
    """Pass the items through behind a bar on standard error, silent where nobody watches."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    watched = sys.stderr.isatty() and is_first_rank()
    yield from tqdm(items, desc=description, total=total, disable=not watched, leave=False)
