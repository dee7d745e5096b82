"""What a suite finds, the paper's figures beside it, and the page that shows both.

report.html holds all its sounds and asks for nothing else; report.md has the tables.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat.errors import ConfigError, InputError
from osum_echat.files import whole_file
from osum_echat.metrics import Confusion, interval
from osum_echat.paths import CONF
from osum_echat.settings import read_mapping

PAPER = CONF / "paper_tables.yaml"
CATEGORIES = ("emotion", "age", "gender", "event", "multi")     # of EChat-eval
SOUND_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg",
               ".ogg": "audio/ogg", ".opus": "audio/ogg"}  # fmt: skip
LARGEST_SOUND_BYTES = 4 << 20
LONG_WORD = 24                          # letters; longer cells may be broken


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. count: the items behind it; low, high: its 95 % bootstrap interval."""

    value: float | None
    unit: str = ""
    count: int = 0
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        text = f"{self.value:.2f}{f' {self.unit}' if self.unit else ''}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.2f}, {self.high:.2f}]"
        return text

    def to_json(self) -> dict[str, Any]:
        """Its fields; those that are None are left out, but for the value."""
        fields = {"unit": self.unit, "count": self.count, "low": self.low, "high": self.high}
        return {"value": self.value} | {
            name: value for name, value in fields.items() if value not in (None, "")
        }


def mean(values: Sequence[float], unit: str = "") -> Measure:
    """The mean of some values with its interval; no value without any."""
    if not values:
        return Measure(None, unit)
    low, high = interval(values) if len(values) > 1 else (None, None)
    return Measure(sum(values) / len(values), unit, len(values), low, high)


def share(right: Sequence[bool]) -> Measure:
    """How many are right, in percent."""
    return mean([100.0 * one for one in right], "%")


def percent(
    part: float, count: int, low: float | None = None, high: float | None = None
) -> Measure:
    """A share or rate, and where it lies, in percent."""
    return Measure(100 * part, "%", count, None if low is None else 100 * low,
                   None if high is None else 100 * high)  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float | None:
    """By straight lines between neighbours; None without values."""
    return float(np.percentile(values, percent)) if values else None


Cell = Measure | str | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first cell of a row names it.

    own: rows that are this system's; whole: what a bar behind a number stands for that fills its
    cell; None: no bars.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    own: frozenset[int] = frozenset()
    whole: float | None = None

    def beside(self, own: Sequence[tuple[str, Sequence[Cell]]], note: str = "") -> "Table":
        """This table of the paper with our own rows below, marked as such."""
        rows = [*self.rows, *((name, *cells) for name, cells in own)]
        marked = frozenset(range(len(self.rows), len(rows)))
        return Table(self.title, self.columns, rows, note, marked)

    def bar(self, cell: Cell) -> float:
        """How much of its cell the bar of a number fills, in percent."""
        value = cell.value if isinstance(cell, Measure) else cell
        if not self.whole or not isinstance(value, float):
            return 0.0
        return 100 * min(1.0, max(0.0, value / self.whole))


def scores(measures: Mapping[str, Measure], columns: Sequence[str]) -> Table:
    """Every measure with the items behind it."""
    rows = [(name, one, str(one.count)) for name, one in measures.items()]
    return Table("Scores", columns, rows, whole=100)


def confusion_table(title: str, confusion: Confusion) -> Table:
    """How often one label was taken for another, in percent of the true ones."""
    rows: list[list[Cell]] = [
        [f"{label} ({sum(row)})", *(100 * count / sum(row) for count in row)]
        for label, row in zip(confusion.labels, confusion.counts, strict=True) if any(row)
    ]  # fmt: skip
    return Table(title, ("listed (down), found (across), %", *confusion.labels), rows, whole=100)


@dataclass(frozen=True, slots=True)
class Clip:
    """Sounds of one item with the words around them. sounds: what each is -> its file.

    sliders: by sound, the name of each slider under it and what it asks.
    """

    caption: str
    sounds: Mapping[str, Path]
    lines: Mapping[str, str] = field(default_factory=dict)
    sliders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Players:
    """Some items to listen to."""

    title: str
    clips: Sequence[Clip]


Block = Table | Players | str      # str: a paragraph


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a suite's predictions amount to.

    measures: what a second run repeats; timings: what depends on the machine and the moment.
    """

    measures: Mapping[str, Measure]
    blocks: Sequence[Block]
    timings: Mapping[str, Measure] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """A title, what was found, and how it came about.

    links: to each titled block, at the top; test: the name of a listening test, whose sliders are
    kept in the browser under it until they are saved.
    """

    title: str
    blocks: Sequence[Block]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    links: bool = False
    test: str = ""


@cache
def paper(name: str) -> Table:
    """A table of the paper. Raises ConfigError where conf/paper_tables.yaml lacks it."""
    raw: Any = read_mapping(PAPER).get(name)
    try:
        rows = [(str(row[0]), *row[1:]) for row in raw["rows"]]
        return Table(raw["title"], raw["columns"], rows, raw.get("note", ""))
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{PAPER}: {name}: no table ({error!r}); take the file anew") from error


def write(page: Page, out: Path) -> None:
    """Write report.html and report.md, each whole or not at all."""
    write_html(page, out / "report.html")
    with whole_file(out / "report.md") as file:
        file.write(markdown(page).encode(errors="replace"))


def write_html(page: Page, path: Path) -> None:
    """The page as one HTML file that asks for nothing else."""
    with whole_file(path) as file:
        file.write(html(page).encode(errors="replace"))


def html(page: Page) -> str:
    """Raises InputError for a sound that cannot be in it."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"sound": data_uri, "plain": plain}
    environment.tests["measure"] = lambda cell: isinstance(cell, Measure) and cell.low is not None
    environment.tests["long"] = lambda cell: isinstance(cell, str) and len(cell) > LONG_WORD
    return environment.get_template("report.html").render(page=page)


def data_uri(path: Path) -> str:
    """A sound file as text. Raises InputError for one that is missing, too long or unknown."""
    kind = SOUND_TYPES.get(path.suffix.lower())
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it is needed for the report") from error
    if kind is None or len(data) > LARGEST_SOUND_BYTES:
        raise InputError(f"{path}: no sound that a page can hold; give wav, flac, mp3 or ogg "
                         f"below {LARGEST_SOUND_BYTES >> 20} MB, or --players 0")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def plain(cell: Cell) -> str:
    """A cell as text."""
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def markdown(page: Page) -> str:
    """The tables and words of the page; sounds are only in the HTML."""
    parts = [f"# {page.title}", *filter(None, map(_markdown_of, page.blocks))]
    for title, facts in (("Settings", page.settings), ("Versions", page.versions)):
        lines = [f"- {name}: {_one_line(str(value))}" for name, value in facts.items()]
        parts.append("\n".join([f"## {title}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _markdown_of(block: Block) -> str:
    if isinstance(block, str):
        return block
    if not isinstance(block, Table):
        return ""
    rows = [block.columns, ["---"] * len(block.columns)]
    rows += [[plain(cell) for cell in row] for row in block.rows]
    lines = ["| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in rows]
    note = ["", block.note] if block.note else []
    return "\n".join([f"## {block.title}", "", *lines, *note])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
