"""One utterance of a public corpus, and how its tables are read."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from osum_echat.errors import InputError
from osum_echat.files import text_lines
from osum_echat.records import Labels


@dataclass(frozen=True, slots=True)
class Found:
    """An utterance. text: its words, empty where it has none; segment_s: the part that is meant."""

    key: str
    audio: Path
    text: str = ""
    labels: Labels = field(default_factory=Labels)
    segment_s: tuple[float, float] | None = None


Lost = list[str]    # lines and rows that cannot be used, each told as where it stands and why


def lines(path: Path, what: str, lost: Lost) -> Iterator[str]:
    """The lines of a text file that are not blank. Raises InputError saying what it should be."""
    try:
        with path.open("rb") as file:
            for line in text_lines(file):
                if line.text is None:
                    lost.append(f"{path} line {line.number}: {line.problem}")
                elif line.text.strip():
                    yield line.text
    except FileNotFoundError as error:
        raise InputError(f"{path}: not there; it is {what}: check the folder and --part") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def pairs(path: Path, what: str, lost: Lost) -> Iterator[tuple[str, str]]:
    """The first word of each line and the rest."""
    for line in lines(path, what, lost):
        parts = line.split(maxsplit=1)
        yield parts[0], parts[1].strip() if len(parts) > 1 else ""


def rows(path: Path, what: str, needed: tuple[str, ...], lost: Lost) -> Iterator[Mapping[str, str]]:
    """The rows of a csv or tsv by the names of its columns.

    Raises InputError where a needed column is missing.
    """
    if path.suffix == ".tsv":           # there a quotation mark is a letter like any other
        reader = csv.DictReader(lines(path, what, lost), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines(path, what, lost))
    missing = set(needed) - set(reader.fieldnames or ())
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}; it is {what}")
    for row in reader:
        if None in row or None in row.values():
            lost.append(f"{path}: {list(row.values())}: not a cell for each column")
        else:
            yield row


def only(root: Path, pattern: str, what: str) -> Path:
    """The one path that fits below a folder. Raises InputError for none or several."""
    paths = sorted(root.glob(pattern))
    if len(paths) != 1:
        raise InputError(f"{root}: {len(paths)} places like {pattern}, need one: {what}")
    return paths[0]
