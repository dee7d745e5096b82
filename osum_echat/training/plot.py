"""Curves of a training as a picture: python -m osum_echat.training.plot RUN [--out curves.png]."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osum_echat import logs
from osum_echat.errors import DataError, OsumError
from osum_echat.training.metric_logger import flat
from osum_echat.training.trainer import METRICS_FILE

PICTURE = "curves.png"
PANELS = {  # title -> how the names of its curves begin and end
    "loss": (("loss", ""), ("tasks/", "/loss")),
    "accuracy": (("accuracy", ""), ("tasks/", "/accuracy")),
    "held-out loss": (("held_out/", "/loss"),),
    "held-out accuracy": (("held_out/", "/accuracy"),),
    "held-out answers": (("answers/", ""),),
    "gradient norm": (("norm", ""),),
    "learning rate": (("rate", ""),),
    "tokens a second": (("tokens_per_s", ""),),
    "padding share": (("padding", ""),),
}
Curve = tuple[list[int], list[float]]


def read(run: Path) -> dict[str, Curve]:
    """Steps and values of every curve of an output directory. Raises DataError."""
    path = run / METRICS_FILE if run.is_dir() else run
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the output directory of a run") from error
    curves: dict[str, Curve] = {}
    for number, text in enumerate(lines, 1):
        try:
            line: dict[str, Any] = json.loads(text)
            step = int(line["step"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a line of metrics: {error}") from error
        for name, value in flat(line).items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    if not curves:
        raise DataError(f"{path}: no line yet; the first comes after run.log_steps steps")
    return curves


def panels(curves: dict[str, Curve]) -> dict[str, list[str]]:
    """Which curves each panel shows; panels without any are left out."""
    found = {
        title: [name for name in curves if any(_fits(name, *ends) for ends in wanted)]
        for title, wanted in PANELS.items()
    }
    return {title: names for title, names in found.items() if names}


def _fits(name: str, begin: str, end: str) -> bool:
    """Whether a curve is `begin` itself, or lies within a `begin` that ends in a slash."""
    inside = begin.endswith("/") and name.startswith(begin)
    return (name == begin or inside) and name.endswith(end)


def draw(curves: dict[str, Curve], title: str, out: Path) -> None:
    """Write the panels as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = panels(curves)
    rows = -(-len(shown) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(12, 3.2 * rows), squeeze=False)
    for place, (name, names) in zip(axes.flat, shown.items(), strict=False):
        for curve in names:
            steps, values = curves[curve]
            label = curve.split("/")[1] if "/" in curve else "all"
            place.plot(steps, values, marker="." if len(steps) < 30 else "", label=label,
                       linewidth=2.0 if label == "all" else 1.0)  # fmt: skip
        place.set_title(name)
        place.set_xlabel("step")
        place.grid(alpha=0.3)
        if len(names) > 1:
            place.legend(fontsize="small")
    for place in list(axes.flat)[len(shown) :]:
        place.set_axis_off()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description="Draw the curves of a training as a PNG.")
    parser.add_argument("run", type=Path, help="output directory of a run, or its metrics.jsonl")
    parser.add_argument("--out", type=Path, help=f"picture; default: {PICTURE} in the run")
    arguments = parser.parse_args(argv)
    run: Path = arguments.run
    out = arguments.out or (run if run.is_dir() else run.parent) / PICTURE
    try:
        draw(read(run), str(run), out)
    except OsumError as error:
        sys.stderr.write(f"plot: {error}\n")
        return 2
    except ImportError:
        sys.stderr.write("plot: needs matplotlib: pip install -r requirements-train.txt\n")
        return 2
    logs.out(str(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
