"""Files: local and remote ones read, text line by line, written whole or not at all, and journals.

What is remote is read where the settings allow its scheme; a journal survives a kill.
"""

import errno
import fcntl
import io
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Self

from osum_echat.errors import ConfigError, DataError, InputError, OsumError
from osum_echat.logs import logger

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LOCK_WAIT_S = 15.0              # for a process of a killed run to let go of its journal
LOCK_POLL_S = 0.1
_REMOTE_BYTES = 1 << 16          # asked of a client at once; it reads ahead by itself
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")

LOG = logger(__name__)


@contextmanager
def _writing(path: Path, advice: str = "make room, or choose another output") -> Iterator[None]:
    """Raises InputError where a file or folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: not written ({error.strerror or error}); {advice}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, or not at all.

    Raises InputError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                yield file
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """An empty folder to write into, which appears under its name when it is complete.

    replace: it takes the place of one of that name. Raises InputError where it cannot be written,
    or something of that name is there.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with _writing(path):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            yield part
            if replace:
                put_in_place(part, path)
            else:
                part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def put_in_place(part: Path, path: Path) -> None:
    """Give a complete folder its name; one that had the name is removed only after that."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.is_dir():
        path.rename(old)
    part.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Inside, no other process holds the lock file `path`; a killed process holds nothing.

    wait_s: how long another one is waited for. Raises InputError where another one holds it still,
    or it cannot be written.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        _lock(file, path, wait_s)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)    # for worker processes that have the file too


def absolute(path: Path) -> Path:
    """The path from the root, as it is written: links in it stay, as in a cache made of them."""
    return Path(os.path.normpath(path.absolute()))


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError where a file that is to be written is one of those that are read."""
    for path in inputs:
        try:
            is_input = out.samefile(path)
        except (OSError, ValueError):       # one of them is not there
            continue
        if is_input:
            raise InputError(f"{out}: this is the input {path}; choose another name")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON to be read by people, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write objects, one a line, whole or not at all; returns how many."""
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a text file. text: None where problem says why it cannot be read."""

    number: int                 # from 1
    text: str | None
    problem: str | None = None


def text_lines(raw: Iterable[bytes]) -> Iterator[Line]:
    """Lines of UTF-8 text; a mark at its beginning, and \\r before \\n, belong to no line.

    raw: pieces that end at \\n, as a binary file gives them: only \\n and \\r\\n end a line, since
    U+2028, U+0085 and their like stand inside texts. Bytes that are no UTF-8 cost their line only.
    """
    for number, piece in enumerate(raw, 1):
        data = piece.removeprefix(BYTE_ORDER_MARK) if number == 1 else piece
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield Line(number, data.decode())
        except UnicodeDecodeError as error:
            yield Line(number, None, f"byte {error.start + 1} is not UTF-8")


def read_lines(
    path: Path, advice: str = "check the path", lost: Callable[[str], object] | None = None
) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank.

    advice: what would do where there is no such file; lost: takes where a line stands that is not
    UTF-8, and what is wrong with it. Raises InputError, without `lost` for such a line too.
    """
    try:
        with path.open("rb") as file:
            for line in text_lines(file):
                if line.text is None:
                    told = f"{path} line {line.number}: {line.problem}"
                    if lost is None:
                        raise InputError(f"{told}; correct the line")
                    lost(told)
                elif line.text.strip():
                    yield line.number, line.text
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; {advice}") from error


def read_jsonl(path: Path, advice: str = "check the path") -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a list. Raises InputError, for a line that is none too."""
    for number, text in read_lines(path, advice):
        yield number, _object(text, path, number)


class Journal:
    """A growing file of JSON objects, a line each, held by one process; nothing written is lost.

    A last line that a kill cut short is taken off when the journal is opened.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError where it cannot be written, or another process holds it."""
        self.path = path
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            _lock(self._file, path)
            self._cut_torn_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def clear(self) -> None:
        """Take all records out."""
        self._file.truncate(0)

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records; they are on disk when this returns. Raises InputError on a full disk."""
        data = b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in records)
        with _writing(self.path, "make room, then start again: what is done is kept"):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        last = next(iter(deque(self._file, 1)), b"\n")
        if not last.endswith(b"\n"):
            LOG.warning("%s: the last line was cut short; it is made again", self.path)
            self._file.truncate(self._file.tell() - len(last))


def read_journal(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a journal; a torn last line is left out; nothing: no such file.

    Raises InputError for any other line that is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    return
                yield number, _object(data, path, number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _object(data: bytes | str, path: Path, number: int) -> dict[str, Any]:
    try:
        one = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} line {number}: not JSON ({error}); correct the line") from error
    if not isinstance(one, dict):
        raise InputError(f"{path} line {number}: a {type(one).__name__}, need an object")
    return one


def _lock(file: BinaryIO, path: Path, wait_s: float = LOCK_WAIT_S) -> None:
    """Hold a file for this process alone; the system lets go of it when the process ends."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                LOG.warning("%s: this file system knows no locks; start this job once only", path)
                return
            if time.monotonic() > deadline:
                raise InputError(
                    f"{path}: another process is writing here; wait for it or end it, or choose "
                    "another output"
                ) from error
        time.sleep(LOCK_POLL_S)


class KeyedJournal(Journal):
    """A journal of objects with a `key`, the last line of a key counts; several threads may add."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where it cannot be read or written."""
        super().__init__(path)
        self._lock = Lock()
        self.found: dict[str, dict[str, Any]] = {}
        for number, one in read_journal(path):
            if not isinstance(one.get("key"), str):
                raise InputError(f"{path} line {number}: no object with a key; remove it")
            self.found[one["key"]] = one

    def add(self, *records: dict[str, Any]) -> None:
        """Write lines, safe on disk when this returns."""
        with self._lock:
            self.write(records)
            self.found |= {one["key"]: one for one in records}


@dataclass(frozen=True, slots=True)
class Files:
    """Opens places: paths, or URLs whose scheme (s3, hf, https ...) is in `schemes`.

    Nothing is ever handed to a shell. Every method raises DataError for a place that is not there,
    ConfigError for a scheme that is not allowed.
    """

    schemes: tuple[str, ...] = ()
    setting: str | None = None  # what allows more of them, for advice

    def open(self, place: str) -> BinaryIO:
        """The bytes of a file, to read and to seek in."""
        with _told(place):
            if not self.is_url(place):
                return Path(place).open("rb")
            return io.BufferedReader(_Remote(self._system(place).open(place, "rb")), _REMOTE_BYTES)

    def read(self, place: str) -> bytes:
        """All bytes of a file."""
        with _told(place), self.open(place) as file:
            return file.read()

    def stamp(self, place: str) -> str:
        """What tells this version of a file from another: its size, and its time or server's mark.
        """
        with _told(place):
            info = self._system(place).info(place)
        marks = ("ETag", "etag", "LastModified", "mtime", "last_modified")
        version = next((str(info[mark]) for mark in marks if info.get(mark)), "")
        # Kept indexes of tars hold it in these words.
        return f"Stamp(size={int(info.get('size') or 0)}, version={version!r})"

    def names(self, folder: str) -> list[str] | None:
        """The names of the files in a folder in order; None where it is no folder."""
        with _told(folder):
            system = self._system(folder)
            if not system.isdir(folder):
                return None
            return sorted(Path(str(one)).name for one in system.ls(folder, detail=False))

    def exists(self, place: str) -> bool:
        """Whether there is anything."""
        with _told(place):
            return bool(self._system(place).exists(place))

    def beside(self, place: str, name: str) -> str:
        """What `name` means in a list at `place`: an absolute path or URL as it stands.

        A relative one is looked for from the list's folder first, then from the working directory.
        """
        if self.is_url(name) or Path(name).is_absolute():
            return name
        near = self.within(self.folder(place), name)
        far_only = not self.is_url(place) and not Path(near).exists() and Path(name).exists()
        return name if far_only else near

    def folder(self, place: str) -> str:
        """The folder that holds a file."""
        if not self.is_url(place):
            return str(Path(place).parent)
        scheme, _, path = place.partition("://")
        return f"{scheme}://{path.rpartition('/')[0]}"

    def within(self, folder: str, name: str) -> str:
        """The place of a name in a folder."""
        if not self.is_url(folder):
            return str(Path(folder) / name)
        return folder + name if folder.endswith("/") else f"{folder}/{name}"

    def is_url(self, place: str) -> bool:
        """Whether a place is a URL; ConfigError for one that is not allowed."""
        found = _URL.match(place)
        if found is None:
            return False
        if found[1] not in self.schemes or "::" in place:
            if self.setting is None:
                advice = "URLs are not read here; fetch it, and name the file by its path"
            else:
                allowed = ", ".join(self.schemes) or "none"
                advice = f"{self.setting} allows {allowed}; add {found[1]} there to read it"
            raise ConfigError(f"{place}: {advice}")
        return True

    def _system(self, place: str) -> Any:
        import fsspec

        scheme = place.partition("://")[0] if self.is_url(place) else "file"
        try:
            return fsspec.filesystem(scheme)
        except ValueError as error:
            known = ", ".join(sorted(fsspec.available_protocols()))
            raise ConfigError(f"{place}: {scheme} is no scheme known here: {known}") from error


class _Remote(io.RawIOBase):
    """A file on a server. Whatever its client raises, who reads gets an OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_error():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _as_os_error():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """The errors of a server's client, which may be of any class of its own."""
    try:
        yield
    except (OSError, EOFError, OsumError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Errors of a file system, of a server or of a missing client, as one line."""
    try:
        with _as_os_error():
            yield
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such file; check the path") from error
    except ImportError as error:
        raise ConfigError(f"{place}: {error}; install what it names to read such URLs") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror or error})") from error
