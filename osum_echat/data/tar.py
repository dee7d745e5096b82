"""The blocks of a tar, told apart from damage: members in order, and stretches that are lost.

Nothing is extracted and no name is used as a path. After a broken header the walk goes on with the
next whole one, so that damage costs the members it hits and no others.
Source of the layout: POSIX ustar and pax, and GNU's long names and large sizes.
"""

import errno
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

BLOCK = 512
MAGIC = b"ustar"
MEMBER_LIMIT = 1 << 30  # bytes; a header that promises more is taken for damage
_NAME_LIMIT = 1 << 20  # bytes of a long name or of pax records
_SEARCH_BYTES = 1 << 20
_FILES, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"\x000", b"L", b"K", b"x", b"g"
_FOLDER = b"5"
NO_END = "no end mark"
_ZERO = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, or what stands in the place of one (a link, a folder, a device)."""

    name: str
    start: int  # byte of its first header
    data: int  # byte of its contents
    size: int
    is_file: bool = True
    is_folder: bool = False

    @property
    def end(self) -> int:
        """The byte after its last block."""
        return self.data + -(-self.size // BLOCK) * BLOCK


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch that cannot be read. `name`: what is left of the name that stood there."""

    start: int
    what: str
    name: str = ""


def walk(file: BinaryIO) -> Iterator[Member | Damage]:
    """Members and damage in the order of the tar; a last Damage where it breaks off."""
    blocks = _Blocks(file)
    at, ended = 0, False
    waiting: Member | None = None  # given only when what follows it is sound
    while True:
        header = blocks.header(at)
        if header is _PADDING:
            at, ended = at + BLOCK, True
            continue
        if isinstance(header, Member) and blocks.holds(header):
            if waiting is not None:
                yield waiting
            waiting, at, ended = header, header.end, False
            continue
        break_at = at
        inside = blocks.next_header(waiting.data, at) if waiting else None
        if waiting is not None:
            yield Damage(waiting.start, "wrong size", waiting.name) if inside else waiting
        waiting = None
        if inside is None and header is None:
            if not ended:
                yield Damage(break_at, NO_END)
            return
        if inside is None:
            lost = header if isinstance(header, Damage) else None
            found = blocks.next_header(at + BLOCK)
            what = lost.what if lost else "cut short" if found is None else "wrong size"
            name = lost.name if lost else header.name if isinstance(header, Member) else ""
            yield Damage(break_at, what, name)
            if found is None:
                return
            inside = found
        at = inside


class _Padding:
    """A block of zeros."""


_PADDING = _Padding()


class _Blocks:
    """Blocks of a file by their place; what cannot be read counts as behind the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, at: int, size: int) -> bytes:
        """Up to `size` bytes. Raises OSError where the disk or the server fails, not the tar."""
        try:
            self.file.seek(at)
            return self.file.read(size)
        except (gzip.BadGzipFile, EOFError, ValueError, OverflowError, zlib.error):
            return b""
        except OSError as error:
            if error.errno == errno.EINVAL:  # a place that no file reaches
                return b""
            raise

    def holds(self, member: Member) -> bool:
        """Whether the contents are all there."""
        if member.size > MEMBER_LIMIT:
            return False
        return member.size == 0 or len(self.read(member.data + member.size - 1, 1)) == 1

    def header(self, at: int) -> Member | Damage | _Padding | None:
        """What stands at a block: long names and pax records belong to the member after them."""
        name, size, start = None, None, at
        while True:
            block = self.read(at, BLOCK)
            if not block and at == start:
                return None
            if len(block) < BLOCK:
                return Damage(start, "cut short", _text(block[:100]))
            if block == _ZERO:
                return _PADDING if at == start else Damage(start, "broken header", name or "")
            member = _parse(block, at)
            if member is None:
                return Damage(start, "broken header", name or _text(block[:100]))
            kind = block[156:157]
            if kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
                if at == start:
                    return member
                return replace(
                    member, start=start, name=member.name if name is None else name,
                    size=member.size if size is None else size,
                )  # fmt: skip
            words = self.read(member.data, member.size) if member.size <= _NAME_LIMIT else b""
            if len(words) < member.size:
                return Damage(start, "broken header", member.name)
            if kind == _LONG_NAME:
                name = _text(words)
            elif kind == _PAX:
                name, size = _pax(words, name, size)
            at = member.end

    def next_header(self, start: int, end: int | None = None) -> int | None:
        """The first whole header from `start` to before `end`; blocks are counted from 0."""
        at = -(-start // BLOCK) * BLOCK
        while end is None or at < end:
            size = _SEARCH_BYTES if end is None else min(_SEARCH_BYTES, end - at)
            stretch = self.read(at, size)
            place = stretch.find(MAGIC)
            while place >= 0:
                block = place - 257
                if block >= 0 and block % BLOCK == 0:
                    whole = stretch[block : block + BLOCK]
                    if len(whole) == BLOCK and _parse(whole, at + block) is not None:
                        return at + block
                place = stretch.find(MAGIC, place + 1)
            if len(stretch) < size or not stretch:
                return None
            at += size // BLOCK * BLOCK or BLOCK
        return None


def _parse(block: bytes, at: int) -> Member | None:
    """The member of a header block, None where its sum is wrong."""
    stored = _number(block[148:156])
    if stored is None or stored != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    size = _number(block[124:136])
    if size is None or size < 0:
        return None
    kind = block[156:157]
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = f"{_text(block[345:500])}/{name}"
    is_file = kind in _FILES and not name.endswith("/")
    is_header = kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL)
    return Member(
        name, at, at + BLOCK, size if is_file or is_header else 0, is_file,
        is_folder=kind == _FOLDER or name.endswith("/"),
    )  # fmt: skip


def _number(raw: bytes) -> int | None:
    """Octal digits, or GNU's binary form of a large number."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    try:
        return int(raw.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _pax(words: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Name and size out of pax records: `<length> <key>=<value>\\n` each."""
    while words:
        digits, space, _ = words.partition(b" ")
        if not space or not digits.isdigit() or not 0 < int(digits) <= len(words):
            return name, size
        record, words = words[len(digits) + 1 : int(digits) - 1], words[int(digits) :]
        field, _, value = record.partition(b"=")
        if field == b"path":
            name = value.decode("utf-8", "replace")
        elif field == b"size" and value.isdigit():
            size = int(value)
    return name, size
