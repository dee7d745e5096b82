"""A raw list in pieces, so that several processes can each read their own lines of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat.data.files import Files
from osum_echat.data.sources import Dropped, json_object, line_starts
from osum_echat.errors import InputError


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of a list: those from byte `start` on, of which the first is number `first`."""

    path: Path
    start: int
    first: int  # counted from 1, blank lines left out
    count: int


def pieces(path: Path, size: int) -> list[Piece]:
    """The list cut into pieces of `size` records.

    Raises InputError for the size, DataError for a list that cannot be read or holds no records.
    """
    if size < 1:
        raise InputError(f"{size} records a piece: give 1 or more")
    starts = line_starts(Files(), str(path))
    return [
        Piece(path, int(starts[first]), first + 1, min(size, len(starts) - first))
        for first in range(0, len(starts), size)
    ]


def records(piece: Piece) -> Iterator[tuple[str, dict[str, Any] | Dropped]]:
    """Where each record stands, for messages, and its object or why it has none."""
    with piece.path.open("rb") as lines:
        lines.seek(piece.start)
        number = piece.first
        while number < piece.first + piece.count:
            line = lines.readline()
            if not line.strip():
                if not line:
                    raise InputError(f"list {piece.path}: changed while it was read; start again")
                continue
            where = f"{piece.path} (record {number})"
            number += 1
            yield where, json_object(line, where, str(piece.path))
