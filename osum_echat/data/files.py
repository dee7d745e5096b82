"""Where bytes come from: local paths, and URLs of those schemes that the settings allow."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from osum_echat.errors import ConfigError, DataError, OsumError

_REMOTE_BYTES = 1 << 16  # asked of a client at once; it reads ahead by itself
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one version of a file from another."""

    size: int  # bytes
    version: str  # time of the last change, or what the server calls the version


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

    def stamp(self, place: str) -> Stamp:
        """Size and version of a file."""
        with _told(place):
            info = self._system(place).info(place)
        marks = ("ETag", "etag", "LastModified", "mtime", "last_modified")
        version = next((str(info[mark]) for mark in marks if info.get(mark)), "")
        return Stamp(int(info.get("size") or 0), version)

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
