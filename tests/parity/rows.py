"""A comparison is rows: one an array, with what may differ, as a table and as an exit code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from osum_echat.errors import CheckpointError

OTHERWISE = "decided otherwise: "
STATES = ("ok", "falls short", "not compared")


@dataclass(frozen=True, slots=True)
class Row:
    """One array. difference: largest absolute one, in the unit of `limit`; None: not compared."""

    name: str
    difference: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def status(self) -> str:
        """One of STATES; NaN falls short."""
        if self.difference is None or self.limit is None:
            return "not compared"
        return "ok" if self.difference <= self.limit else "falls short"

    def __str__(self) -> str:
        difference = "-" if self.difference is None else f"{self.difference:.2e}"
        limit = "-" if self.limit is None else f"{self.limit:.0e}"
        note = f": {self.note}" if self.note and self.status != "ok" else ""
        return f"{self.name:<56} {difference:>10} {limit:>8}  {self.status}{note}"


def not_compared(name: str, reason: str) -> Row:
    """A row that says why there is nothing to hold against it."""
    return Row(name, note=reason)


def close(name: str, ours: Any, theirs: Any, limit: float, note: str = "") -> Row:
    """By the largest absolute difference. A limit of 0: by the number of places that differ."""
    ours, theirs = _array(ours), _array(theirs)
    if ours.shape != theirs.shape:
        size = f"ours {ours.shape}, theirs {theirs.shape}"
        return Row(name, float("inf"), limit, f"{size}; {note}" if note else size)
    if not limit:
        return Row(name, float((ours != theirs).sum()), limit, note or "places that differ")
    if not ours.size:
        return not_compared(name, "nothing in it")
    return Row(name, float(np.abs(ours.astype(float) - theirs.astype(float)).max()), limit, note)


def exact(name: str, ours: Any, theirs: Any, note: str = "") -> Row:
    """Ids, masks or lists."""
    return close(name, ours, theirs, 0.0, note)


def near(name: str, ours: Any, theirs: Any, limit: float) -> Row:
    """By the rms of the difference, relative to the rms of theirs."""
    ours, theirs = _array(ours).astype(float), _array(theirs).astype(float)
    if ours.shape != theirs.shape:
        return Row(name, float("inf"), limit, f"ours {ours.shape}, theirs {theirs.shape}")
    error = np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())
    return Row(name, float(error), limit, "relative rms")


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz. Raises CheckpointError."""
    try:
        with np.load(path) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one a line, and how many ended how."""
    counts = (f"{sum(row.status == state for row in rows)} {state}" for state in STATES)
    head = f"{'array':<56} {'difference':>10} {'limit':>8}  result"
    return "\n".join([head, *map(str, rows), ", ".join(counts)])
