"""What a suite finds, the paper's figures beside it, and the page that shows both.

report.html holds all its pictures and sounds and asks for nothing else; report.md has the tables.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

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
COLOURS = ("#3b6ea5", "#d98032", "#5a9a5f", "#a5527f", "#8a7f3c", "#5f6b7a", "#4fa3a5", "#b3554d")
INK = "#010203"                         # stands for the colour of the page's text, light or dark
WIDTH_IN, ROW_IN, DOTS_PER_IN = 7.6, 0.36, 100
METADATA = ("Date", "Creator", "Format", "Type")      # of a picture: none is written
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
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first cell of a row names it. own: rows that are this system's."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    own: frozenset[int] = frozenset()

    def beside(self, own: Sequence[tuple[str, Sequence[Cell]]], note: str = "") -> "Table":
        """This table of the paper with our own rows below, marked as such."""
        rows = [*self.rows, *((name, *cells) for name, cells in own)]
        marked = frozenset(range(len(self.rows), len(rows)))
        return Table(self.title, self.columns, rows, note, marked)


def scores(measures: Mapping[str, Measure], columns: Sequence[str]) -> Table:
    """Every measure with the items behind it."""
    return Table("Scores", columns, [(name, one, str(one.count)) for name, one in measures.items()])


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars, one bar a series. values[series][group]; a None is a gap."""

    kind: ClassVar[str] = "picture"
    title: str
    groups: Sequence[str]
    values: Mapping[str, Sequence[Measure | None]]
    unit: str = ""

    def draw(self, axes: Any) -> None:
        """Whiskers stand for intervals."""
        width = 0.8 / max(1, len(self.values))
        for series, (name, row) in enumerate(self.values.items()):
            places = [group + width * (series - (len(self.values) - 1) / 2)
                      for group, _ in enumerate(row)]  # fmt: skip
            tops = [one.value or 0.0 if one else 0.0 for one in row]
            axes.bar(places, tops, 0.92 * width, label=name, color=COLOURS[series % len(COLOURS)])
            for place, one in zip(places, row, strict=True):
                if one and one.low is not None and one.high is not None:
                    axes.plot([place, place], [one.low, one.high], color=INK, linewidth=1)
        axes.set_xticks(range(len(self.groups)), self.groups,
                        rotation=30 if len(self.groups) > 8 else 0)  # fmt: skip
        axes.set_ylabel(self.unit)
        axes.set_ylim(bottom=0)
        _legend(axes)


@dataclass(frozen=True, slots=True)
class Stack:
    """One lying bar a row, made of parts that add up. rows[name][part]."""

    kind: ClassVar[str] = "picture"
    title: str
    parts: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    unit: str = "s"

    def draw(self, axes: Any) -> None:
        lefts = [0.0] * len(self.rows)
        for part, name in enumerate(self.parts):
            widths = [max(0.0, row[part]) for row in self.rows.values()]
            axes.barh(list(self.rows), widths, left=lefts, label=name,
                      color=COLOURS[part % len(COLOURS)])  # fmt: skip
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
        for row, end in enumerate(lefts):
            axes.text(end, row, f" {end:.2f} {self.unit}", va="center", fontsize=8, color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        _legend(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)


@dataclass(frozen=True, slots=True)
class Matrix:
    """How often one label was taken for another: true ones down, found ones across."""

    kind: ClassVar[str] = "picture"
    title: str
    confusion: Confusion

    def draw(self, axes: Any) -> None:
        """The shade is the share of the row."""
        labels, counts = self.confusion.labels, self.confusion.counts
        shares = [[count / max(1, sum(row)) for count in row] for row in counts]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                ink = "white" if shares[row][column] > 0.55 else "black"
                axes.text(column, row, count or "", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axes.set_yticks(range(len(labels)), labels)


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

    kind: ClassVar[str] = "players"
    title: str
    clips: Sequence[Clip]


Block = Table | Bars | Stack | Matrix | Players | Words


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
    environment.filters |= {"sound": data_uri, "picture": picture, "plain": plain}
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


def picture(block: Bars | Stack | Matrix) -> str:
    """The block as SVG that takes the page's colour of text."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = len(block.confusion.labels) if isinstance(block, Matrix) else 6
    style = {"svg.fonttype": "none", "svg.hashsalt": block.title, "text.color": INK,
             "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
             "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
             "font.size": 9, "font.family": "sans-serif", "text.parse_math": False}  # fmt: skip
    with matplotlib.rc_context(style):
        size_in = WIDTH_IN, max(2.0, ROW_IN * (rows + 2))
        figure = Figure(figsize=size_in, dpi=DOTS_PER_IN, layout="constrained")
        block.draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
    drawn = file.getvalue()
    return drawn[drawn.index("<svg"):].replace(INK, "currentColor")


def plain(cell: Cell) -> str:
    """A cell as text."""
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def markdown(page: Page) -> str:
    """The tables and words of the page; pictures and sounds are only in the HTML."""
    parts = [f"# {page.title}", *filter(None, map(_markdown_of, page.blocks))]
    for title, facts in (("Settings", page.settings), ("Versions", page.versions)):
        lines = [f"- {name}: {_one_line(str(value))}" for name, value in facts.items()]
        parts.append("\n".join([f"## {title}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _markdown_of(block: Block) -> str:
    if isinstance(block, Words):
        return block.text
    if not isinstance(block, Table):
        return ""
    rows = [block.columns, ["---"] * len(block.columns)]
    rows += [[plain(cell) for cell in row] for row in block.rows]
    lines = ["| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in rows]
    note = ["", block.note] if block.note else []
    return "\n".join([f"## {block.title}", "", *lines, *note])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
