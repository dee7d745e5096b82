"""Which bytes of a tar hold which utterance: found once, kept beside the tar, checked at each use.

Nothing is extracted and no name is used as a path. A key beside bytes that are lost, or whose data
holds a tar header (a wrong size), is left out and counted: no key is given another one's sound or
words. An index is made again when the tar, or the jsonl of a combine pair, has another size or
time; what is read through it is compared with the sums taken when it was made.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from osum_echat.errors import DataError, InputError
from osum_echat.files import Files, whole_file

SUFFIX = ".index"
CACHE = Path("~/.cache/osum-echat/indexes")
DAMAGED = "damaged tar"
SOUNDS = ("flac", "mp3", "m4a", "ogg", "opus", "wav", "wma")
TEXTS = ("txt", "task", "extra")  # members without which an utterance is another one
BLOCK = 512
_FORMAT = "osum-echat tar index 2"
_CHUNK = 1 << 20  # bytes read at once
_NAME_LIMIT = 1 << 20  # bytes of a long name or of pax records
_RECORD = 20 * BLOCK  # what tars are filled up to with zeros
_END_MARK = 2 * BLOCK  # zeros at the end of a tar, at least
_PACKED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
}  # fmt: skip
_ZSTD = b"\x28\xb5\x2f\xfd"
_CUT = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError,
        IndexError)  # fmt: skip
_UNIT_COLUMNS, _MEMBER_COLUMNS = 5, 5


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a unit cannot be read. `broken`: the file is at fault, not a choice of its owner."""

    reason: str
    detail: str
    broken: bool = True


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, or what stands in the place of one (a link, a folder, a device)."""

    name: str
    start: int  # byte of its first header
    data: int  # byte of its contents
    size: int
    is_file: bool
    is_folder: bool
    sum: int = 0  # crc32 of header and contents
    fault: str | None = None  # what is wrong with its size


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes between members, or behind the last, that are neither. Empty: no end mark."""

    start: int
    size: int
    is_zero: bool
    is_new: bool  # it begins like a header or an end mark: no rest of the member before it

    @property
    def is_end(self) -> bool:
        """Whether it is as long as the zeros at the end of a tar are."""
        return self.is_zero and _END_MARK <= self.size < _END_MARK + _RECORD

    @property
    def is_join(self) -> bool:
        """Whether it looks like the end of a tar behind which another was appended."""
        return self.is_end and (self.start + self.size) % _RECORD == 0


@dataclass(frozen=True, slots=True)
class Index:
    """The units of a tar.

    units: (units, 5): first and last row in `members`, first byte, last byte and crc32 of its line
    in the jsonl (-1: there is none). members: (members, 5): number of the postfix, first byte,
    first byte of the contents, their size, crc32 of header and contents.
    """

    keys: list[str]
    postfixes: list[str]
    units: np.ndarray
    members: np.ndarray
    faults: dict[int, Fault]

    def __len__(self) -> int:
        return len(self.units)

    def read(self, file: BinaryIO, unit: int) -> dict[str, bytes]:
        """The contents of a unit's members by postfix; DataError where they are not those indexed.

        Raises OSError, EOFError where they cannot be read.
        """
        first, last = self.units[unit, :2].tolist()
        rows = self.members[first:last].tolist()
        if not rows:
            return {}
        begin = rows[0][1]
        file.seek(begin)
        whole = memoryview(file.read(rows[-1][2] + rows[-1][3] - begin))
        found = {}
        for postfix, start, data, size, total in rows:
            if zlib.crc32(whole[start - begin : data + size - begin]) != total:
                name = f"{self.keys[unit]}.{self.postfixes[postfix]}"
                raise DataError(f"{name} at byte {start} has changed since the tar was indexed")
            found[self.postfixes[postfix]] = bytes(whole[data - begin : data + size - begin])
        return found


def open_tar(files: Files, tar: str) -> BinaryIO:
    """A tar to read from, plain or unpacked on the way (gzip, bzip2, xz: known by first bytes)."""
    file = files.open(tar)
    head = file.read(6)
    file.seek(0)
    if head.startswith(_ZSTD):
        raise DataError(f"{tar}: packed by zstd; unpack it, or pack it by gzip, bzip2 or xz")
    packed = next((kind for mark, kind in _PACKED.items() if head.startswith(mark)), None)
    return packed(file) if packed is not None else file


def split_name(name: str) -> tuple[str, str] | None:
    """Key and postfix of a member, parted at the last dot; None for a name that has no postfix."""
    key, dot, postfix = name.removeprefix("./").rpartition(".")
    return (key, postfix.lower()) if dot and key and "/" not in postfix else None


def is_sound(postfix: str) -> bool:
    """Whether a postfix is that of the user's sound, now or in an earlier turn (wav_1 ...)."""
    return postfix in SOUNDS or (postfix.startswith("wav_") and postfix[4:].isdecimal())


def is_text(postfix: str) -> bool:
    """Whether a postfix is that of words that are read."""
    return postfix in TEXTS or postfix.startswith("txt_")


class _Blocks:
    """A tar by its bytes; what cannot be read counts as behind the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # tarfile's reader of headers wants an archive that is open; this one is empty
        self._tar = tarfile.TarFile(
            fileobj=io.BytesIO(bytes(2 * BLOCK)), ignore_zeros=True,
            encoding="utf-8", errors="replace",
        )  # fmt: skip

    def read(self, at: int, size: int) -> bytes:
        """Up to `size` bytes. Raises OSError where the disk or the server fails, not the tar."""
        try:
            self._file.seek(at)
            return self._file.read(size)
        except _CUT:
            return b""
        except OSError as error:
            if error.errno is None and isinstance(self._file, bz2.BZ2File):
                return b""
            raise

    def member(self, at: int) -> tuple[Member, int] | None:
        """The member whose header is at a byte, and the byte after its last block; None: none."""
        block = self.read(at, BLOCK)
        try:
            first = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            if not first.isreg() and first.size > _NAME_LIMIT:
                return None
            self._tar.fileobj = io.BytesIO(block) if first.isreg() else self._file
            if not first.isreg():
                self._file.seek(at)
            info = tarfile.TarInfo.fromtarfile(self._tar)
        except (tarfile.TarError, *_CUT):
            return None
        shift = at if first.isreg() else 0
        is_file = info.isreg() and not info.issparse()
        data, end = info.offset_data + shift, self._tar.offset + shift
        return Member(info.name, at, data, info.size if is_file else end - data, is_file,
                      info.isdir()), end  # fmt: skip

    def checked(self, member: Member, end: int) -> tuple[Member, int]:
        """A member with its sum and what is wrong with its size, and where the next one stands."""
        total = zlib.crc32(self.read(member.start, member.data - member.start))
        at, stop = member.data, member.data + member.size
        while at < end:
            chunk = self.read(at, min(_CHUNK, end - at))
            inside = _header_in(chunk)
            if inside is not None:
                return replace(member, fault="wrong size"), at + inside
            padding = chunk[max(0, stop - at) :]
            total = zlib.crc32(chunk[: max(0, stop - at)], total)
            at += len(chunk)
            if any(padding):
                return replace(member, fault="wrong size"), end
            if not chunk:
                break
        fault = "cut short" if at < stop else None
        return replace(member, sum=total, fault=fault), max(at, member.data)

    def skip(self, start: int) -> tuple[Gap, tuple[Member, int] | None]:
        """The bytes before the next header from a place on, and its member; None: there is none."""
        at, is_zero = start, True
        head = self.read(start, _END_MARK)
        while chunk := self.read(at, _CHUNK):
            found = _header_in(chunk)
            while found is not None:
                member = self.member(at + found)
                if member is not None:
                    is_zero = is_zero and not any(chunk[:found])
                    return Gap(start, at + found - start, is_zero, _begins_anew(head)), member
                after = _header_in(chunk[found + BLOCK :])
                found = None if after is None else found + BLOCK + after
            is_zero = is_zero and not chunk.strip(b"\0")
            at += len(chunk)
        return Gap(start, at - start, is_zero, _begins_anew(head)), None


def _begins_anew(block: bytes) -> bool:
    """Whether blocks begin with a header, with a byte or two wrong or cut, or are all zeros."""
    is_header = sum(map(int.__eq__, block[257:262], b"ustar")) >= 4
    return len(block) < BLOCK or is_header or not any(block)


def _header_in(data: bytes) -> int | None:
    """The first block of some that is a whole header: its byte; None: none is."""
    blocks = np.frombuffer(data, np.uint8, len(data) // BLOCK * BLOCK).reshape(-1, BLOCK)
    sums = blocks[:, 148:156]
    is_digit = (sums >= ord("0")) & (sums <= ord("7"))
    likely = (is_digit | (sums == 0) | (sums == ord(" "))).all(1) & is_digit.any(1)
    for number in np.flatnonzero(likely).tolist():
        try:
            tarfile.TarInfo.frombuf(blocks[number].tobytes(), "utf-8", "replace")
        except (tarfile.TarError, ValueError, OverflowError):
            continue
        return number * BLOCK
    return None


def walk(file: BinaryIO) -> Iterator[Member | Gap]:
    """Members and gaps in the order of the tar; the last is a gap where it does not end in one."""
    blocks = _Blocks(file)
    at = 0
    while True:
        found = blocks.member(at)
        if found is None:
            gap, found = blocks.skip(at)
            if found is None:
                if not gap.is_end:
                    yield gap
                return
            yield gap
        member, end = found
        member, at = blocks.checked(member, end)
        yield member
        if at != end:
            yield Gap(at, 0, False, False)


@dataclass(slots=True)
class _Group:
    """Members of one key that stand together, and what lies beside them."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    fault: Fault | None = None
    before: Gap | None = None
    after: Gap | None = None
    postfixes: set[str] = field(default_factory=set)


def _grouped(parts: Iterable[Member | Gap]) -> Iterator[_Group]:
    """Groups in the order of the tar; a gap without a group beside it is one without a key."""
    group: _Group | None = None
    gap: Gap | None = None
    for part in parts:
        if isinstance(part, Gap):
            gap = part
            continue
        if part.is_folder:
            continue
        key, postfix = split_name(part.name) or (part.name, "")
        if group is None or key != group.key or postfix in group.postfixes:
            if group is not None:
                group.after = gap
                yield group
            group = _Group(key, fault=_name_fault(key, postfix), before=gap)
        elif gap is not None:
            group.fault = group.fault or _gap_fault(gap, group.key)
        gap = None
        group.postfixes.add(postfix)
        if is_sound(postfix) or is_text(postfix):
            group.members[postfix] = part
        if part.fault is not None:
            detail = f"{part.fault} of {part.name!r} at byte {part.start}"
            group.fault = group.fault or Fault(DAMAGED, detail)
        elif not part.is_file:
            group.fault = group.fault or Fault("a link in place of a file", f"{part.name!r}")
    if group is not None:
        group.after = gap
        yield group
    elif gap is not None and not gap.is_zero:
        yield _Group("", fault=_gap_fault(gap, ""))


def _gap_fault(gap: Gap, key: str) -> Fault:
    lost = f"{gap.size} bytes are lost" if gap.size else "the tar breaks off"
    return Fault(DAMAGED, f"{lost} beside {key!r}, at byte {gap.start}")


def _name_fault(key: str, postfix: str) -> Fault | None:
    """A key that would lead out of a folder is refused, though nothing is written by it here."""
    if not postfix:
        return Fault("member without a postfix", f"{key!r}")
    parts = PurePosixPath(key).parts
    unsafe = key.startswith("/") or ".." in parts or "\\" in key or "\ufffd" in key
    return Fault("unsafe name", f"{key!r}") if unsafe else None


def _judged(groups: list[_Group], has_lines: bool) -> list[_Group]:
    """The groups, those faulted that a gap, or the lack of what most others have, makes doubtful.

    Beside a gap a group is given only where all groups away from gaps have the same members and it
    has them too, and where the gap is no rest of its last member.
    """
    sound = [one for one in groups if one.fault is None and not one.before and not one.after]
    shapes = {frozenset(one.postfixes) for one in sound}
    counts = Counter(name for one in groups if one.fault is None for name in one.postfixes)
    whole = sum(one.fault is None for one in groups)
    usual = [name for name in TEXTS if 2 * counts[name] > whole and not has_lines]
    for one in groups:
        is_whole = shapes == {frozenset(one.postfixes)}
        for gap, is_rest in ((one.before, False), (one.after, _may_be_rest(one.after))):
            if gap is not None and not gap.is_join and (is_rest or not is_whole):
                one.fault = one.fault or _gap_fault(gap, one.key)
        lost = [name for name in usual if name not in one.postfixes]
        if lost and one.fault is None:
            detail = f"{one.key!r}: most others here have it; write an empty one for none"
            one.fault = Fault(f"lost .{lost[0]}", detail)
    return list(_with_lost(groups))


def _with_lost(groups: list[_Group]) -> Iterator[_Group]:
    """The groups, and one without a key for each gap that no group beside it is left out for."""
    for place, one in enumerate(groups):
        yield one
        gap, beside = one.after, groups[place : place + 2]
        if gap is None or gap.is_join or any(each.fault for each in beside):
            continue
        if len(beside) > 1 or not gap.is_zero or not gap.size:
            yield _Group("", fault=_gap_fault(gap, one.key))


def _may_be_rest(gap: Gap | None) -> bool:
    """Whether a gap may be what a size that is too small leaves of the member before it."""
    return gap is not None and gap.size > 0 and not gap.is_zero and not gap.is_new


def make_index(files: Files, tar: str, lines: str | None = None) -> Index:
    """Walk through a tar, and through the jsonl that holds the words of its audio.

    Raises DataError where the disk or the server fails: no index is kept of half a tar.
    """
    try:
        with open_tar(files, tar) as file:
            groups = _judged(list(_grouped(walk(file))), lines is not None)
    except OSError as error:
        raise DataError(f"{tar}: cannot be read ({error.strerror or error})") from error
    if not groups:
        groups = [_Group("", fault=Fault("empty tar", "no members"))]
    faults = {unit: one.fault for unit, one in enumerate(groups) if one.fault is not None}
    keys = [one.key for one in groups]
    places = dict.fromkeys(range(len(keys)), (-1, -1, 0))
    if lines is not None:
        places, lost = _lines_of(files, lines, keys, faults)
        faults |= {len(keys) + number: fault for number, fault in enumerate(lost)}
        keys += [""] * len(lost)
    postfixes = sorted({name for one in groups for name in one.members})
    rows: list[tuple[int, ...]] = []
    units = []
    for unit in range(len(keys)):
        first = len(rows)
        members = groups[unit].members if unit < len(groups) else {}
        rows += [(postfixes.index(name), one.start, one.data, one.size, one.sum)
                 for name, one in members.items()]  # fmt: skip
        units.append((first, len(rows), *places.get(unit, (-1, -1, 0))))
    return Index(keys, postfixes, _table(units, _UNIT_COLUMNS), _table(rows, _MEMBER_COLUMNS),
                 faults)  # fmt: skip


def _table(rows: Items[tuple[int, ...]], columns: int) -> np.ndarray:
    return np.array(rows, dtype="<i8").reshape(-1, columns)


def _lines_of(
    files: Files, lines: str, keys: list[str], faults: dict[int, Fault]
) -> tuple[dict[int, tuple[int, int, int]], list[Fault]]:
    """First byte, last byte and sum of each unit's line; `faults` are added to; lines of none."""
    places: dict[str, tuple[int, int, int]] = {}
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
                continue
            if key in places:
                lost.append(Fault("key twice in the list", f"{lines} (line {number}): {key!r}"))
            places[key] = (start, at, zlib.crc32(line))
    for unit, key in enumerate(keys):
        if key not in places and unit not in faults:
            faults[unit] = Fault("no line in the list", f"{lines}: {key!r}", broken=False)
    lost += [Fault("not in the tar", f"{key!r}") for key in places.keys() - set(keys)]
    return {unit: places[key] for unit, key in enumerate(keys) if key in places}, lost


def _key_of(line: bytes) -> str | None:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return None
    key = raw.get("key") if isinstance(raw, dict) else None
    return key if isinstance(key, str) else None


def load_index(files: Files, tar: str, lines: str | None = None) -> tuple[Index, bool]:
    """The index of a tar, with the places of its lines in the jsonl `lines` of a combine pair.

    Read from beside the tar or from the cache, else made and kept where writing is allowed. Second:
    whether it is kept. Raises DataError, ConfigError for what cannot be opened.
    """
    stamps = [files.stamp(place) for place in (tar, lines) if place is not None]
    name = sha256(f"{tar} {lines}".encode()).hexdigest()[:32]
    kept = [] if files.is_url(tar) else [Path(f"{tar if lines is None else lines}{SUFFIX}")]
    with suppress(RuntimeError):  # a user without a home
        kept.append(CACHE.expanduser() / f"{name}{SUFFIX}")
    for place in kept:
        found = _read(place, stamps)
        if found is not None:
            return found, True
    index = make_index(files, tar, lines)
    return index, any(_write(place, index, stamps) for place in kept)


def _read(place: Path, stamps: list[str]) -> Index | None:
    """The index kept at a place, None where there is none for these versions of the files."""
    try:
        first, _, tables = place.read_bytes().partition(b"\n")
        head = json.loads(first)
        if head["format"] != _FORMAT or head["stamps"] != stamps:
            return None
        if head["sum"] != zlib.crc32(tables):
            return None
        numbers = np.frombuffer(tables, "<i8")
        size = len(head["keys"]) * _UNIT_COLUMNS
        units, members = numbers[:size], numbers[size:]
        faults = {int(unit): Fault(*each) for unit, each in head["faults"].items()}
        return Index(head["keys"], head["postfixes"], units.reshape(-1, _UNIT_COLUMNS),
                     members.reshape(-1, _MEMBER_COLUMNS), faults)  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(place: Path, index: Index, stamps: list[str]) -> bool:
    """Keep an index, whole or not at all; False where that is not allowed."""
    tables = index.units.tobytes() + index.members.tobytes()
    faults = {unit: (one.reason, one.detail, one.broken) for unit, one in index.faults.items()}
    head = {"format": _FORMAT, "stamps": stamps, "sum": zlib.crc32(tables), "faults": faults,
            "postfixes": index.postfixes, "keys": index.keys}  # fmt: skip
    try:
        with whole_file(place) as file:
            file.write(json.dumps(head).encode() + b"\n" + tables)
    except InputError:
        return False
    return True
