"""What a comparison found: one row for each array, and how rows are shown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

OTHERWISE = "decided otherwise: "


@dataclass(frozen=True, slots=True)
class Row:
    """One array. difference: largest absolute one, in the unit of `limit`; None: not compared."""

    name: str
    difference: float | None
    limit: float | None
    note: str = ""

    @property
    def status(self) -> str:
        """ok, falls short, or not compared."""
        if self.difference is None or self.limit is None:
            return "not compared"
        return "ok" if self.difference <= self.limit else "falls short"    # NaN falls short

    def to_json(self) -> dict[str, Any]:
        """The row as plain values; a difference that is no number becomes None."""
        finite = self.difference is not None and math.isfinite(self.difference)
        return {**asdict(self), "difference": self.difference if finite else None,
                "status": self.status}


def as_array(values: Any) -> np.ndarray:
    """Tensors of any kind, lists and numbers as one array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def close(name: str, ours: Any, theirs: Any, limit: float, note: str = "") -> Row:
    """Compare numbers by the largest absolute difference."""
    ours, theirs = as_array(ours), as_array(theirs)
    if ours.shape != theirs.shape:
        return Row(name, float("inf"), limit, f"ours {ours.shape}, theirs {theirs.shape}")
    if not ours.size:
        return not_compared(name, "nothing in it")
    gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return Row(name, float(gap.max()), limit, note)


def exact(name: str, ours: Any, theirs: Any, note: str = "") -> Row:
    """Compare ids, masks or lists: the difference is the number of places that differ."""
    ours, theirs = as_array(ours), as_array(theirs)
    if ours.shape != theirs.shape:
        size = f"ours {ours.shape}, theirs {theirs.shape}"
        return Row(name, float("inf"), 0.0, f"{size}; {note}" if note else size)
    return Row(name, float((ours != theirs).sum()), 0.0, note or "places that differ")


def near(name: str, ours: Any, theirs: Any, limit: float) -> Row:
    """Compare by the rms of the difference, relative to the rms of theirs."""
    ours, theirs = as_array(ours).astype(np.float64), as_array(theirs).astype(np.float64)
    if ours.shape != theirs.shape:
        return Row(name, float("inf"), limit, f"ours {ours.shape}, theirs {theirs.shape}")
    error = np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())
    return Row(name, float(error), limit, "relative rms")


def not_compared(name: str, reason: str) -> Row:
    """A row that says why there is nothing to hold against it."""
    return Row(name, None, None, reason)


def summary(rows: Sequence[Row]) -> str:
    """How many rows ended how."""
    counts = {status: sum(row.status == status for row in rows)
              for status in ("ok", "falls short", "not compared")}
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def table(rows: Iterable[Row]) -> str:
    """The rows as text, one a line."""
    lines = [f"{'array':<56} {'difference':>10} {'limit':>8}  result"]
    for row in rows:
        difference = "-" if row.difference is None else f"{row.difference:.2e}"
        limit = "-" if row.limit is None else f"{row.limit:.0e}"
        note = f": {row.note}" if row.note and row.status != "ok" else ""
        lines.append(f"{row.name:<56} {difference:>10} {limit:>8}  {row.status}{note}")
    return "\n".join(lines)
