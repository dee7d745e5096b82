"""Lists of lists: which files a corpus is in, which form each has, and how often it is read.

A manifest is a YAML of free names, each with `path` and `weight`; every other key is for people.
A path is a raw jsonl, a list of tars or of combine pairs, one tar, or a folder of these.
"""

import io
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from osum_echat.data.sources import Dropped, RawSource, Shard, Source, TarSource
from osum_echat.errors import ConfigError, DataError, InputError, OsumError
from osum_echat.files import Files, Line, text_lines
from osum_echat.logs import logger
from osum_echat.records import Utterance
from osum_echat.settings import check_word, mapping, no_misspelt
from osum_echat.tasks import task_for

LOG = logger(__name__)
KINDS = ("s2t", "t2s", "s2s", "t2t")  # what goes in and out: speech (s) or text (t)
SHARDS_LIST = "shards_list.txt"  # one tar a line
COMBINES_LIST = "combines_list.txt"  # one jsonl a line, beside a tar of the same stem
READ_KEYS = ("path", "weight")
TAR_ROOT = "combines_tar_root.txt"  # one line: the folder of those tars
RAW_LIST = "data.list"
TARS = (".tar", *(f".tar{one}" for one in (".gz", ".bz2", ".xz")), ".tgz", ".tbz2", ".txz")
_LINE_BYTES = 1 << 16  # of a list of tars; a longer first line can only be a record


@dataclass(frozen=True, slots=True)
class Entry:
    """One corpus of a manifest."""

    name: str
    path: str
    weight: float = 1.0


def read_manifest(place: str, files: Files | None = None) -> list[Entry]:
    """The entries of a manifest; a relative path starts at its folder, else where one stands.

    Weights as upstream has them: whole numbers repeat (2.5 counts as 2), a weight below 1 takes
    that part of the utterances, 0 leaves the entry out. Raises ConfigError, DataError.
    """
    files = files or Files()
    raw = mapping(files.read(place), f"manifest {place}")
    if not raw:
        raise ConfigError(f"manifest {place}: a mapping of names to `path` and `weight` is needed")
    return [_entry(str(name), entry, place, files) for name, entry in raw.items()]


def _entry(name: str, raw: Any, place: str, files: Files) -> Entry:
    where = f"manifest {place}: {name}"
    path = raw.get("path") if isinstance(raw, dict) else None
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{where}: `path` is missing; give a list, a tar or a folder")
    no_misspelt(raw, READ_KEYS, f"{where}: ")
    try:
        weight = float(raw.get("weight", 1.0))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: weight {raw['weight']!r}, need a number") from error
    if not 0.0 <= weight < float("inf"):
        raise ConfigError(f"{where}: weight {weight}, need 0 or more")
    if weight > 1.0 and weight != int(weight):
        LOG.warning("%s: weight %s counts as %d: above 1 a weight is whole", where, weight, weight)
        weight = float(int(weight))
    return Entry(name, files.beside(place, path), weight)


class OfKind:
    """A source of which only the tasks of one kind are taken."""

    def __init__(self, source: Source, kind: str) -> None:
        check_word("data.manifests", kind, KINDS)
        self.name, self.source, self.kind = source.name, source, kind

    def __len__(self) -> int:
        return len(self.source)

    def stretches(self, units: int) -> np.ndarray:
        """As of the source itself."""
        return self.source.stretches(units)

    def read(self, unit: int) -> Utterance | Dropped:
        """The utterance of a unit; one of another kind is dropped."""
        one = self.source.read(unit)
        if isinstance(one, Dropped):
            return one
        try:
            kind = task_for(one.task).kind
        except InputError as error:
            return Dropped("task cannot be used", f"{one.key}: {error}")
        is_own = kind == self.kind
        return one if is_own else Dropped("task of another kind", f"{one.key}: {one.task}")


def open_source(
    name: str, path: str, task: str | None = None, files: Files | None = None
) -> Source:
    """The utterances of a path, whichever form it has; `task` overrides the tags found there.

    A file is told by its contents: lines that begin with a brace are raw records, others name tars
    (`tar`, `-|tar`) or combine pairs (`jsonl|tar`, or a jsonl in a list called combines_list.txt).
    Raises DataError for what is not there or holds nothing.
    """
    files = files or Files()
    inside = files.names(path)
    if inside is not None:
        return _folder(name, path, inside, task, files)
    if path.endswith(TARS):
        return TarSource(name, [Shard(path)], task, files)
    if _is_raw(files, path):
        return RawSource(name, path, task, files)
    return TarSource(name, list_shards(path, files), task, files)


def list_shards(place: str, files: Files | None = None) -> list[Shard]:
    """The tars and combine pairs of a list file in order; a line that names none is a problem.

    Raises DataError where no line names one.
    """
    files = files or Files()
    is_combine = place.endswith(COMBINES_LIST)
    root = _tar_root(files, place) if is_combine else ""
    shards = []
    for line in _text_lines(files, place):
        where = f"list {place} line {line.number}"
        if line.text is None:
            shards.append(Shard(where, problem=f"{where}: {line.problem}"))
            continue
        try:
            shards.append(_pair(files, place, line.text, root) if is_combine
                          else _line(files, place, line.text))  # fmt: skip
        except OsumError as error:
            shards.append(Shard(where, problem=f"{where}: {error}"))
    if shards and all(shard.problem for shard in shards):
        raise DataError(str(shards[0].problem))
    return shards


def _folder(name: str, path: str, inside: list[str], task: str | None, files: Files) -> Source:
    """The list of a folder by its usual name, or else all tars in it."""
    for usual in (SHARDS_LIST, COMBINES_LIST, RAW_LIST):
        if usual in inside:
            return open_source(name, files.within(path, usual), task, files)
    tars = [one for one in inside if one.endswith(TARS)]
    if not tars:
        raise DataError(
            f"list {path}: a folder without {SHARDS_LIST}, {COMBINES_LIST}, {RAW_LIST} or tars"
        )
    return TarSource(name, [Shard(files.within(path, one)) for one in tars], task, files)


def _is_raw(files: Files, place: str) -> bool:
    with files.open(place) as lines:
        while line := lines.readline(_LINE_BYTES):
            if line.strip():
                return line.lstrip(b"\xef\xbb\xbf \t").startswith((b"{", b"["))
    raise DataError(f"list {place}: no records; it is empty")


def _text_lines(files: Files, place: str) -> list[Line]:
    """The lines of a list that are not blank, without white space around them."""
    lines = text_lines(io.BytesIO(files.read(place)))
    stripped = (line if line.text is None else replace(line, text=line.text.strip())
                for line in lines)  # fmt: skip
    return [line for line in stripped if line.text != ""]


def _line(files: Files, place: str, line: str) -> Shard:
    """`-|tar`, `jsonl|tar` or a bare tar."""
    before, bar, after = line.partition("|")
    tar = (after if bar else before).strip()
    if not tar.endswith(TARS):
        raise DataError(f"{line[:200]!r} names no tar; write `tar`, `-|tar` or `jsonl|tar`")
    lines = before.strip() if bar and before.strip() != "-" else None
    return Shard(files.beside(place, tar), lines and files.beside(place, lines))


def _tar_root(files: Files, place: str) -> str:
    """The folder of a combine list's tars: what its neighbour names, else its own."""
    beside = f"{place.removesuffix(COMBINES_LIST)}{TAR_ROOT}"
    if not files.exists(beside):
        return files.folder(place)
    lines = _text_lines(files, beside)
    if not lines or lines[0].text is None:
        what = lines[0].problem if lines else "empty"
        raise DataError(f"{beside}: {what}; write the folder of the tars into it")
    return files.beside(beside, lines[0].text)


def _pair(files: Files, place: str, line: str, root: str) -> Shard:
    """A jsonl and the tar of its stem."""
    if "|" in line:
        return _line(files, place, line)
    stem = PurePosixPath(line).name.rpartition(".")[0] or PurePosixPath(line).name
    tars = [files.within(root, f"{stem}{ending}") for ending in TARS]
    found = next((tar for tar in tars if files.exists(tar)), tars[0])
    return Shard(found, files.beside(place, line))
