"""What a suite finds: measures with their intervals, and the blocks that its report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osum_echat.metrics import Confusion, interval


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
        text = f"{self.value:.2f}{_spaced(self.unit)}"
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


def percentile(values: Sequence[float], percent: float) -> float | None:
    """By straight lines between neighbours; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


Cell = Measure | str | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first cell of a row names it. own: rows that are this system's."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    own: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars, one bar a series. values[series][group]; a None is a gap."""

    title: str
    groups: Sequence[str]
    values: Mapping[str, Sequence[Measure | None]]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar a row, made of parts that add up. rows[name][part]."""

    title: str
    parts: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Matrix:
    """How often one label was taken for another."""

    title: str
    confusion: Confusion


@dataclass(frozen=True, slots=True)
class Clip:
    """Sounds of one item with the words around them. sounds: what each is -> its file."""

    caption: str
    sounds: Mapping[str, Path]
    lines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Players:
    """Some items to listen to."""

    title: str
    clips: Sequence[Clip]


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    text: str


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


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""
