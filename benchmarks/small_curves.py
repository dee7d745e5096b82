"""How the parts of the small model learnt, as one picture.

    python -m benchmarks.small_curves --out docs/small_curves.svg
        ear=build/ear/run talker=build/voice/talker flow=build/voice/flow
        thinker=build/thinker/stage3

PART=DIR[,DIR ...]: the outputs of its trainings one after another, with a metrics.jsonl each.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat import cli
from osum_echat.errors import InputError
from osum_echat.files import read_journal, whole_file

METRICS = "metrics.jsonl"
POINTS = 120  # of a curve: the mean of what lies between two of them
MOST_OF_LAST = 3.0  # what lies above so many times the last value is cut off
SHOWN = {"accuracy": "tokens right, %", "mu": "L1 of the mean mel", "mel": "L1 of the mel"}

Line = dict[str, Any]


def lines_of(path: Path) -> list[Line]:
    """Raises InputError where there are none, or one is not JSON."""
    found = [line for _, line in read_journal(path)]
    if not found:
        raise InputError(f"{path}: missing or empty; give the output of a training")
    return found


def curve(directories: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, str]:
    """Minutes and values of trainings one after another, (points,) each, and their name."""
    minutes, values, name, begun = list[float](), list[float](), "", 0.0
    for directory in directories:
        told = [line for line in lines_of(directory / METRICS)
                if "minutes" in line and SHOWN.keys() & line]  # fmt: skip
        if not told:
            raise InputError(f"{directory / METRICS}: none of {', '.join(SHOWN)} is told there")
        name = next(one for one in SHOWN if one in told[0])
        minutes += [begun + line["minutes"] for line in told]
        values += [line[name] * (100 if name == "accuracy" else 1) for line in told]
        begun = minutes[-1]
    edges = np.linspace(0, len(values), min(POINTS, len(values)) + 1).astype(int)
    parts = [slice(first, last) for first, last in pairwise(edges)]
    means = [np.array([np.mean(all_[part]) for part in parts]) for all_ in (minutes, values)]
    return means[0], means[1], SHOWN[name]


def draw(parts: dict[str, list[Path]], out: Path) -> None:
    """One panel a part, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(parts), 3.2), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for panel, (part, directories) in zip(panels, parts.items(), strict=True):
        minutes, values, name = curve(directories)
        panel.plot(minutes, values, color="tab:blue", label="training")
        panel.set(title=part, xlabel="minutes", ylabel=name)
        panel.set_ylim(0, min(values.max(), MOST_OF_LAST * values[-1]))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": out.name}), whole_file(out) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def part(given: str) -> tuple[str, list[Path]]:
    """PART=DIR[,DIR] as it was typed. Raises ValueError."""
    name, places = given.split("=")
    return name, [Path(one) for one in places.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("parts", nargs="+", type=part, metavar="PART=DIR[,DIR]")
    parser.add_argument("--out", type=Path, required=True, metavar="SVG")
    chosen = parser.parse_args(argv)
    return cli.run("small_curves", lambda: draw(dict(chosen.parts), chosen.out))


if __name__ == "__main__":
    sys.exit(main())
