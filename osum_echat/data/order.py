"""In which order the units of all lists are visited in an epoch, by chance that can be repeated."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Visit:
    """One unit of one source in an epoch; `turn` counts the visits of a list with weight over 1."""

    source: int
    turn: int
    unit: int


class EpochOrder:
    """The visits of an epoch. Memory goes with the number of stretches, not of visits.

    lists: of each source the edges of its stretches (stretches + 1,) and its weight. A weight of
    2.5 visits every unit twice and a part of int(0.5 * units) of them, drawn anew each epoch, once
    more. Stretches are shuffled, the units inside them are not.
    """

    def __init__(
        self,
        lists: Items[tuple[np.ndarray, float]],
        seed: int,
        epoch: int,
        shuffle: bool = True,
    ) -> None:
        rng = np.random.default_rng([seed, epoch])
        parts = [
            stretch
            for source, (edges, weight) in enumerate(lists)
            for stretch in _visited(source, edges, weight, rng, shuffle)
        ]
        table = np.concatenate([np.zeros((4, 0), dtype=np.int64), *parts], axis=1)
        if shuffle:
            table = table[:, rng.permutation(table.shape[1])]
        self._source, self._turn, self._first, sizes = table
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def visits(self, start: int, stop: int, step: int = 1) -> list[Visit]:
        """The visits at these places of the order."""
        places = np.arange(start, min(stop, len(self)), step)
        stretch = np.searchsorted(self._ends, places, side="right")
        before = np.concatenate([[0], self._ends])[stretch]
        units = self._first[stretch] + places - before
        columns = (self._source[stretch], self._turn[stretch], units)
        return [Visit(*row) for row in zip(*(one.tolist() for one in columns), strict=True)]


def _visited(
    source: int, edges: np.ndarray, weight: float, rng: np.random.Generator, shuffle: bool
) -> list[np.ndarray]:
    """Tables (source, turn, first unit, units; stretches) of the visits of one list."""
    firsts, sizes = edges[:-1], np.diff(edges)
    whole = int(weight)
    tables = [_table(source, turn, firsts, sizes) for turn in range(whole)]
    part = int((weight - whole) * int(edges[-1]))
    if part:
        chosen = rng.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
        ends = np.cumsum(sizes[chosen])
        last = int(np.searchsorted(ends, part))
        chosen = chosen[: last + 1]
        own = sizes[chosen].copy()
        own[-1] -= int(ends[last]) - part
        tables.append(_table(source, whole, firsts[chosen], own))
    return tables


def _table(source: int, turn: int, firsts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    kept = sizes > 0
    firsts, sizes = firsts[kept], sizes[kept]
    return np.stack([np.full_like(firsts, source), np.full_like(firsts, turn), firsts, sizes])
