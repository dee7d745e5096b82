"""A raw list in pieces, so that several processes can each read their own lines of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat.data.sources import Dropped, json_object
from osum_echat.errors import InputError


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of a list: those from byte `start` on, of which the first is number `first`."""

    path: Path
    start: int
    first: int  # counted from 1, blank lines left out
    count: int


def pieces(path: Path, size: int) -> list[Piece]:
    """The list cut into pieces of `size` records. Raises InputError where it cannot be read."""
    if size < 1:
        raise InputError(f"{size} records a piece: give 1 or more")
    found: list[Piece] = []
    number, offset, start = 0, 0, 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    start = offset if number % size == 0 else start
                    number += 1
                    if number % size == 0:
                        found.append(Piece(path, start, number - size + 1, size))
                offset += len(line)
    except OSError as error:
        raise InputError(f"list {path}: {error.strerror}; give a jsonl file") from error
    if rest := number % size:
        found.append(Piece(path, start, number - rest + 1, rest))
    if not found:
        raise InputError(f"list {path}: no records; one JSON object a line is needed")
    return found


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
