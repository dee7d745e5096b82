"""The card of a model that the recipe has made: its parts, and how long each step took."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from common_utils.tiny_world.step import Book
from osum_echat.files import read_journal
from osum_echat.weights import WEIGHTS_FILE

CARD_FILE = "README.md"
TIMES = "## Time of each step"
METRICS_FILE = "metrics.jsonl"
GAP = "\n\n"
TITLE = """# A model of the tiny world

Made by the recipe of the Makefile from synthetic speech; it knows nothing but its small world.

"""


def write(out: Path, books: Sequence[Path], stages: Path | None, title: str = TITLE) -> None:
    """Write the card of the model in `out`; of one that is there only the times are made new.

    books: times of the steps, see tiny_world.step; stages: folder of the trainings' outputs; title:
    how a new card begins.
    """
    path = out / CARD_FILE
    times = _times(books, stages)
    if path.is_file():
        old = path.read_text(encoding="utf-8")
        before, found, rest = old.partition(TIMES)
        _, mark, behind = rest.partition("\n## ")
        text = f"{before if found else f'{old.rstrip()}{GAP}'}{times}{mark}{behind}"
    else:
        text = f"{title}{_parts(out)}\n{times}"
    path.write_text(text, encoding="utf-8")


def training_minutes(stages: Path) -> dict[str, float]:
    """Minutes of each training below the folder, in the order in which they ended.

    As the trainings count them: over all their runs, without what a kill threw away.
    """
    every = [path for depth in ("*", "*/*") for path in stages.glob(f"{depth}/{METRICS_FILE}")]
    found = sorted(every, key=lambda one: one.stat().st_mtime)
    minutes = {}
    for path in found:
        counted = [one["minutes"] for _, one in read_journal(path) if "minutes" in one]
        minutes[str(path.parent.relative_to(stages))] = max(counted, default=0.0)
    return minutes


def _times(books: Sequence[Path], stages: Path | None) -> str:
    rows = []
    for book in books:
        rows += [(name, one.seconds / 60) for name, one in Book(book).steps.items()]
    if stages is not None:
        rows += [(f"of these: {name}", one) for name, one in training_minutes(stages).items()]
    lines = [f"| {name} | {minutes:.1f} |" for name, minutes in rows]
    return "\n".join((TIMES, "By the clock, over all runs.", "",
                      "| step | minutes |", "|---|---|", *lines, ""))  # fmt: skip


def _parts(out: Path) -> str:
    """A table of the parts and their millions of weights."""
    weights: Counter[str] = Counter()
    for path in sorted(out.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in list(file.keys()):
                first = name.partition(".")[0] if path.parent == out else (
                    path.parent.name if path.name == WEIGHTS_FILE else path.stem
                )  # fmt: skip
                weights[first] += math.prod(file.get_slice(name).get_shape())
    rows = [f"| {name} | {size / 1e6:.2f} |" for name, size in weights.items()]
    return "\n".join(("| part | million weights |", "|---|---|", *rows, ""))
