"""What a .pt holds, mapped from disk: plain tensors only, and nothing in the file is ever run."""

import io
import mmap
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from osum_echat.errors import CheckpointError

LARGEST_PICKLE_BYTES = 64 << 20             # names and shapes; the published 3B needs 0.2 MB
MOST_RECORDS = 200_000
LOCAL_HEADER_BYTES = 30                     # of a zip record, before its name and extra field
LONGEST_REASON = 200
LFS_MARK = b"version https://git-lfs"
SAVE_AGAIN = "save it again by torch.save, as a dict of plain tensors"


class Stretch(io.RawIOBase):
    """A part of a file as a file of its own, read-only: a member of a tar, say."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self.file, self.start, self.size, self.place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self.size - self.place))
        self.file.seek(self.start + self.place)
        data = self.file.read(wanted)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def load(path: Path, start: int = 0, size: int | None = None, where: str = "") -> Any:
    """The content of a .pt, its tensors mapped privately: read when used, changes stay in memory.

    start, size: the bytes of `path` that are the .pt, None for all of it (a member of an
    uncompressed tar is such a stretch); where: its name in errors. The file's pages are the memory:
    while the tensors are in use, replace it by a renamed one, never overwrite it.
    Raises CheckpointError for a file that is cut short, compressed or not from torch.save, that
    declares more than it holds, or whose pickle asks for anything but plain tensors.
    """
    where = where or str(path)
    try:
        with path.open("rb") as file:
            held = path.stat().st_size
            size = held - start if size is None else size
            if start + size > held:
                raise CheckpointError(f"{where}: cut short; copy it again")
            part = io.BufferedReader(Stretch(file, start, size))
            records = _records(part, size, where)
            content = _skeleton(part, where)
            ahead = start % mmap.ALLOCATIONGRANULARITY
            memory = mmap.mmap(
                file.fileno(), ahead + size, access=mmap.ACCESS_COPY, offset=start - ahead
            )
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read ({error.strerror or error})") from error
    return _filled(content, _Mapped(memory, ahead, records, where))


def _records(part: BinaryIO, size: int, where: str) -> dict[int, int]:
    """Start and size of the data of each record of the zip, which must be there as it is told."""
    if part.read(len(LFS_MARK)) == LFS_MARK:
        raise CheckpointError(f"{where}: a pointer of Git LFS, not the file; run git lfs pull")
    try:
        entries = zipfile.ZipFile(part).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(
            f"{where}: cut short, or not written by torch.save of 1.6 or newer ({error}); "
            "copy it again"
        ) from error
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    declared = sum(entry.file_size for entry in entries)
    if packed or declared > size or len(entries) > MOST_RECORDS:
        raise CheckpointError(
            f"{where}: declares {declared} bytes in {len(entries)} records, {len(packed)} of them "
            f"compressed, in a file of {size}; torch.save writes none such, so it is not opened"
        )
    if any(entry.filename.endswith(".pkl") and entry.file_size > LARGEST_PICKLE_BYTES
           for entry in entries):  # fmt: skip
        raise CheckpointError(f"{where}: too much beside its tensors; {SAVE_AGAIN}")
    return dict(_place(part, size, entry, where) for entry in entries)


def _place(part: BinaryIO, size: int, entry: zipfile.ZipInfo, where: str) -> tuple[int, int]:
    """Where the data of a record starts, and its size."""
    part.seek(max(0, entry.header_offset))
    header = part.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES or header[:4] != b"PK\3\4":
        raise CheckpointError(f"{where}: damaged at {entry.filename!r}; copy it again")
    name, extra = struct.unpack_from("<HH", header, LOCAL_HEADER_BYTES - 4)
    start = entry.header_offset + LOCAL_HEADER_BYTES + name + extra
    if start + entry.file_size > size:
        raise CheckpointError(f"{where}: cut short at {entry.filename!r}; copy it again")
    return start, entry.file_size


def _skeleton(part: BinaryIO, where: str) -> Any:
    """The content with empty tensors that know only their shape and their place in the file."""
    part.seek(0)
    try:
        return torch.load(part, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{where}: holds more than plain tensors, which could be code; nothing was run "
            f"({_reason(error)}); {SAVE_AGAIN}"
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            AssertionError, EOFError, MemoryError, OverflowError) as error:  # fmt: skip
        raise CheckpointError(
            f"{where}: not readable as weights ({_reason(error)}); {SAVE_AGAIN}"
        ) from error


def _reason(error: BaseException) -> str:
    """What torch found, without its advice to trust the file."""
    lines = str(error).splitlines() or [repr(error)]
    named = [line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines)[0][:LONGEST_REASON]


@dataclass(frozen=True, slots=True)
class _Mapped:
    """The mapped file, where the .pt starts in it, and the size of each record by its place."""

    memory: mmap.mmap
    start: int
    records: dict[int, int]
    where: str

    def view(self, empty: Tensor) -> Tensor:
        """The tensor that `empty` stands for; nothing is read yet."""
        if empty.layout != torch.strided or not empty.is_meta:
            raise CheckpointError(f"{self.where}: holds a {empty.layout} tensor; {SAVE_AGAIN}")
        storage = empty.untyped_storage()
        reach, width = storage.nbytes(), empty.element_size()
        if not empty.numel():
            return torch.empty(empty.shape, dtype=empty.dtype)
        place = getattr(storage, "_checkpoint_offset", -1)
        held = self.records.get(place, 0)
        needed = max(reach, empty.numel() * width)
        if held < needed:
            raise CheckpointError(
                f"{self.where}: declares a tensor of {needed} bytes, of which it holds {held}; "
                "copy it again"
            )
        offset = self.start + place
        if offset % width:
            raise CheckpointError(f"{self.where}: its tensors lie askew; {SAVE_AGAIN}")
        count = reach // width
        flat = torch.frombuffer(self.memory, dtype=empty.dtype, count=count, offset=offset)
        return flat.as_strided(empty.shape, empty.stride(), int(empty.storage_offset()))


def _filled(content: Any, mapped: _Mapped) -> Any:
    """`content` with each empty tensor replaced by a view of the mapped file."""
    if isinstance(content, Tensor):
        return mapped.view(content)
    if isinstance(content, dict):
        return {key: _filled(one, mapped) for key, one in content.items()}
    if isinstance(content, list | tuple):
        return [_filled(one, mapped) for one in content]
    return content
