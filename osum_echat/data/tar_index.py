"""Which bytes of a tar hold which utterance: found once, kept beside the tar, checked at each use.

An index is a line of JSON and a table of whole numbers. It is made again when the tar (or the
jsonl of a combine pair) has another size or time of change.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from osum_echat.data.files import Files
from osum_echat.data.tar import NO_END, Damage, Member, walk
from osum_echat.errors import DataError
from osum_echat.logs import logger

LOG = logger(__name__)
SUFFIX = ".index"
DAMAGED = "damaged tar"
CACHE = Path("~/.cache/osum-echat/indexes")
_FORMAT = "osum-echat tar index 1"
_WORDS = ("txt", "task", "extra")  # members without which an utterance is another one
_LIKE = 0.5  # at most this share of a name may differ from the key that it is taken for
_COLUMNS = 4  # start and end in the tar, start and end of the line in the jsonl; -1: there is none


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a unit cannot be read. `broken`: the file is at fault, not a choice of its owner."""

    reason: str
    detail: str
    broken: bool = True


@dataclass(frozen=True, slots=True)
class Index:
    """Units of a tar: (units, 4) byte ranges, and those that are known to be lost."""

    ranges: np.ndarray
    faults: dict[int, Fault]

    def __len__(self) -> int:
        return len(self.ranges)


@dataclass(frozen=True, slots=True)
class Group:
    """Members of one key that stand together."""

    key: str
    start: int
    end: int
    postfixes: frozenset[str] = frozenset()
    fault: Fault | None = None


def load_index(files: Files, tar: str, lines: str | None = None) -> Index:
    """The index of a tar, with the places of its lines in the jsonl `lines` of a combine pair.

    Read from beside the tar or from the cache, else made and kept where writing is allowed. Raises
    DataError for a tar or jsonl that cannot be opened.
    """
    stamps = [str(files.stamp(place)) for place in (tar, lines) if place is not None]
    kept = [CACHE.expanduser() / f"{sha256(f'{tar} {lines}'.encode()).hexdigest()[:32]}{SUFFIX}"]
    if not files.is_url(tar):
        kept.insert(0, Path(f"{tar if lines is None else lines}{SUFFIX}"))
    for place in kept:
        found = _read(place, stamps)
        if found is not None:
            return found
    index = make_index(files, tar, lines)
    if not any(_write(place, index, stamps) for place in kept):
        LOG.warning("%s: its index can be kept neither beside it nor in %s", tar, CACHE)
    return index


def make_index(files: Files, tar: str, lines: str | None = None) -> Index:
    """Walk through a tar, and through the jsonl that holds the words of its audio.

    Raises DataError where the disk or the server fails: no index is kept of half a tar.
    """
    try:
        with open_tar(files, tar) as file:
            groups = _judged(_grouped(walk(file)))
    except OSError as error:
        raise DataError(f"{tar}: cannot be read ({error.strerror or error})") from error
    if not groups:
        groups = [Group("", 0, 0, fault=Fault("empty tar", "no members"))]
    ranges = [(group.start, group.end, -1, -1) for group in groups]
    faults = {number: group.fault for number, group in enumerate(groups) if group.fault}
    if lines is not None:
        ranges, faults = _with_lines(files, lines, groups, faults)
    table = np.array(ranges, dtype=np.int64).reshape(-1, _COLUMNS)
    return Index(table, faults)


def open_tar(files: Files, tar: str) -> BinaryIO:
    """A tar to read from, plain or unpacked on the way (.gz, known by its first bytes)."""
    file = files.open(tar)
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not is_packed:
        return file
    import gzip

    return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]


def split_name(name: str) -> tuple[str, str] | None:
    """Key and postfix of a member, parted at the last dot; None for a name that has no postfix."""
    key, dot, postfix = name.removeprefix("./").rpartition(".")
    return (key, postfix.lower()) if dot and key and "/" not in postfix else None


@dataclass(slots=True)
class _Open:
    """A group that is still growing."""

    key: str
    start: int
    end: int
    postfixes: set[str] = field(default_factory=set)
    fault: Fault | None = None

    def closed(self) -> Group:
        return Group(self.key, self.start, self.end, frozenset(self.postfixes), self.fault)


def _grouped(parts: Iterable[Member | Damage]) -> Iterator[Group]:
    """Groups in the order of the tar; damage is given to the key that its name is like.

    Damage that belongs to no key becomes a group of its own, without a key.
    """
    group: _Open | None = None
    damage: Damage | None = None
    for part in parts:
        if isinstance(part, Damage):
            if damage is not None:
                yield Group("", damage.start, damage.start, fault=_fault(damage))
            damage = part
            continue
        if part.is_folder:
            continue
        named = split_name(part.name)
        if named is None:
            yield Group("", part.start, part.end,
                        fault=Fault("member without a postfix", f"{part.name!r}"))  # fmt: skip
            continue
        key, postfix = named
        is_new = group is None or key != group.key or postfix in group.postfixes
        own = None
        if damage is not None:
            own = _owner(damage, group.key if group else None, key)
            if own is None and is_new:
                if group is not None:
                    yield group.closed()
                    group = None
                yield Group("", damage.start, damage.start, fault=_fault(damage))
            elif group is not None and (own == group.key or not is_new):
                group.fault = group.fault or _fault(damage)
        if is_new:
            if group is not None:
                yield group.closed()
            group = _Open(key, part.start, part.end, fault=_name_fault(key))
            if damage is not None and own == key:
                group.fault = group.fault or _fault(damage)
        assert group is not None
        group.end = part.end
        group.postfixes.add(postfix)
        if not part.is_file:
            group.fault = group.fault or Fault("a link in place of a file", f"{part.name!r}")
        damage = None
    yield from _last(group, damage)


def _last(group: _Open | None, damage: Damage | None) -> Iterator[Group]:
    """The last group, and what came after it."""
    own = damage is not None and group is not None and _owner(damage, group.key, None)
    if group is not None and own and damage is not None:
        group.fault = group.fault or _fault(damage)
    if group is not None:
        yield group.closed()
    if damage is not None and not own:
        yield Group("", damage.start, damage.start, fault=_fault(damage))


def _fault(damage: Damage) -> Fault:
    return Fault(DAMAGED, f"{damage.what} at byte {damage.start}")


def _name_fault(key: str) -> Fault | None:
    """A key that would lead out of a folder is refused, though nothing is written by it here."""
    parts = PurePosixPath(key).parts
    unsafe = key.startswith("/") or ".." in parts or "\\" in key or "\ufffd" in key
    return Fault("unsafe name", f"{key!r}") if unsafe else None


def _owner(damage: Damage, before: str | None, after: str | None) -> str | None:
    """The key, of the two beside the damage, that its name is more like; None: neither, or both."""
    scores = sorted((_unlike(damage.name, key), key) for key in (before, after) if key is not None)
    if len(scores) < 2 or before == after:
        return scores[0][1] if scores and scores[0][0] == 0.0 else None
    is_clear = scores[0][0] <= _LIKE and scores[0][0] < scores[1][0]
    return scores[0][1] if is_clear else None


def _unlike(name: str, key: str) -> float:
    """The share of a key's letters that a name has not in their places."""
    wanted = f"{key}."
    same = sum(one == two for one, two in zip(name.removeprefix("./"), wanted, strict=False))
    return 1.0 - same / len(wanted)


def _judged(groups: Iterable[Group]) -> list[Group]:
    """Damage without an owner is that of the group beside it which lacks what most others have."""
    every = list(groups)
    sound = [group for group in every if group.key and group.fault is None]
    counts = Counter(postfix for group in sound for postfix in group.postfixes)
    usual = {postfix for postfix in _WORDS if 2 * counts[postfix] > len(sound)}
    blamed = set()
    for place, group in enumerate(every):
        if _is_nameless(group):
            for beside in (place - 1, place + 1):
                if 0 <= beside < len(every) and usual - every[beside].postfixes:
                    other = every[beside]
                    if other.key and other.fault is None:
                        short = ", ".join(sorted(usual - other.postfixes))
                        detail = f"{other.key!r} has lost {short}"
                        every[beside] = replace(other, fault=Fault(DAMAGED, detail))
                    blamed.add(place)
            if group.fault and group.fault.detail.startswith(NO_END):
                blamed.add(place)  # a tar without its last blocks has lost nothing else
    return [group for place, group in enumerate(every) if place not in blamed]


def _is_nameless(group: Group) -> bool:
    return not group.key and group.fault is not None and group.fault.reason == DAMAGED


def _with_lines(
    files: Files, lines: str, groups: list[Group], faults: dict[int, Fault]
) -> tuple[list[tuple[int, int, int, int]], dict[int, Fault]]:
    """Ranges and faults of a combine pair: each group's line, and lines that have no group."""
    places: dict[str, tuple[int, int]] = {}
    lost: list[Fault] = []
    at = 0
    with files.open(lines) as file:
        for number, line in enumerate(file, 1):
            start, at = at, at + len(line)
            if not line.strip():
                continue
            key = _key_of(line)
            if key is None:
                lost.append(Fault("not JSON", f"{lines} (line {number}): no object with a key"))
            elif key in places:
                lost.append(Fault("key twice in the list", f"{lines} (line {number}): {key!r}"))
            if key is not None:
                places[key] = (start, at)
    ranges = []
    faults = dict(faults)
    for number, group in enumerate(groups):
        line_start, line_end = places.get(group.key, (-1, -1))
        ranges.append((group.start, group.end, line_start, line_end))
        if line_start < 0 and number not in faults:
            faults[number] = Fault("no line in the list", f"{lines}: {group.key!r}", broken=False)
    keys = {group.key for group in groups}
    lost += [Fault("not in the tar", f"{key!r}") for key in places if key not in keys]
    for fault in lost:
        faults[len(ranges)] = fault
        ranges.append((-1, -1, -1, -1))
    return ranges, faults


def _key_of(line: bytes) -> str | None:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return None
    key = raw.get("key") if isinstance(raw, dict) else None
    return key if isinstance(key, str) else None


def _read(place: Path, stamps: list[str]) -> Index | None:
    """The index kept at a place, None where there is none for these versions of the files."""
    try:
        data = place.read_bytes()
        first, _, table = data.partition(b"\n")
        head = json.loads(first)
        if head["format"] != _FORMAT or head["stamps"] != stamps:
            return None
        if head["sum"] != zlib.crc32(table):
            return None
        ranges = np.frombuffer(table, dtype="<i8").reshape(-1, _COLUMNS)
        return Index(ranges, {int(unit): Fault(*each) for unit, each in head["faults"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(place: Path, index: Index, stamps: list[str]) -> bool:
    """Keep an index, whole or not at all; False where that is not allowed."""
    table = index.ranges.astype("<i8").tobytes()
    faults = {unit: (one.reason, one.detail, one.broken) for unit, one in index.faults.items()}
    head = {"format": _FORMAT, "stamps": stamps, "sum": zlib.crc32(table), "faults": faults}
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(json.dumps(head).encode() + b"\n" + table)
        part.replace(place)
    except OSError:
        part.unlink(missing_ok=True)
        return False
    return True
