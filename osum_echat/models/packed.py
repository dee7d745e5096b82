"""A model in one file, a tar here or at a web address: unpacked once, into the cache."""

import tarfile
import zlib
from hashlib import sha256
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from osum_echat import logs, paths
from osum_echat.errors import CheckpointError
from osum_echat.files import locked, whole_folder

ENDS = (".tar", ".tar.gz", ".tgz")
WEB = ("https://", "http://")
WAIT_S = 1800.0         # for another process that fetches the same
SILENCE_S = 60.0        # of a server, before it is given up

LOG = logs.logger(__name__)


def is_packed(place: str) -> bool:
    """Whether a source is a tar."""
    return place.startswith(WEB) or (place.endswith(ENDS) and Path(place).is_file())


def unpacked(place: str) -> Path:
    """The folder of a model that comes as a tar. What is there is not fetched again.

    Raises CheckpointError for what cannot be fetched or holds no model.
    """
    name = Path(urlsplit(place).path if place.startswith(WEB) else place).name
    end = next((end for end in ENDS if name.endswith(end)), None)
    if end is None:
        raise CheckpointError(f"{place}: a model in one file ends in {', '.join(ENDS)}")
    told = sha256(_version(place).encode()).hexdigest()
    folder = paths.cache() / f"{name.removesuffix(end)}-{told[:12]}"
    with locked(folder.with_name(f".{folder.name}.lock"), WAIT_S):
        if not folder.exists():
            LOG.info("%s: into %s, once", place, folder)
            with whole_folder(folder) as part:
                _unpack(place, part)
                _model(part, place)
    return _model(folder, place)


def _unpack(place: str, folder: Path) -> None:
    try:
        with _opened(place) as file, tarfile.open(fileobj=file, mode="r|*") as packed:
            for member in packed:
                _extract(packed, member, folder)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        told = f"{place}: cannot be fetched or unpacked ({error})"
        raise CheckpointError(told) from error


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """As tarfile's filter `data` does, which Python 3.11.2 of Debian does not have yet."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.TarError(f"{member.name} lies outside")
    if member.isdir():
        return
    content = packed.extractfile(member) if member.isfile() else None
    if content is None:
        raise tarfile.TarError(f"{member.name} is no file; pack what links lead to: tar -h")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with (folder / path).open("wb") as written:
        copyfileobj(content, written)


def _version(place: str) -> str:
    """Changes with the file; a web address is taken to keep its content."""
    if place.startswith(WEB):
        return place
    found = Path(place).stat()
    return f"{Path(place).resolve()} {found.st_size} {found.st_mtime_ns}"


def _opened(place: str) -> IO[Any]:
    if place.startswith(WEB):
        file: IO[Any] = urlopen(place, timeout=SILENCE_S)
        return file
    return Path(place).open("rb")


def _model(folder: Path, place: str) -> Path:
    """The folder itself or the one in it, whichever is a model."""
    found = sorted(folder.glob(paths.WHOLE)) or sorted(folder.glob(f"*/{paths.WHOLE}"))
    if len(found) != 1:
        raise CheckpointError(f"{place}: holds {len(found)} {paths.WHOLE}; pack one model's folder")
    return found[0].parent
