"""Where the files of a model lie: in a directory, or as members of a tar that is never unpacked."""

import io
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from osum_echat.errors import CheckpointError

MOST_MEMBERS = 10_000
LARGEST_HEADER_BYTES = 1 << 20          # what a tar may say about one member
LARGEST_TEXT_BYTES = 1 << 20
LARGEST_FILE_BYTES = 4 << 30            # the largest published file of speech is 0.5 GB
TEXT_SUFFIXES = (".yaml",)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`size` bytes of the file `path`, from `start`: a whole file, or a member of a tar."""

    path: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return str(self.path) if self.is_whole else f"{self.path}: {self.name}"

    @classmethod
    def whole(cls, path: Path) -> "StoredFile":
        """A file of its own. Raises CheckpointError where it cannot be found."""
        try:
            return cls(path, path.name, 0, path.stat().st_size)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error

    @property
    def is_whole(self) -> bool:
        return self.start == 0          # a member of a tar comes after its header

    def read(self) -> bytes:
        """All its bytes. Raises CheckpointError where fewer are there."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise CheckpointError(f"{self}: cannot be read ({error.strerror})") from error
        if len(data) < self.size:
            raise CheckpointError(f"{self}: cut short; copy it again")
        return data


Shelf = dict[str, StoredFile]


def shelf(source: Path, names: Collection[str]) -> Shelf:
    """The files of these names in a directory, or in an uncompressed tar, whatever its folders.

    Raises CheckpointError: nothing there, a damaged tar, a name twice, a file far too large.
    """
    if source.is_dir():
        paths = [source / name for name in names]
        files = {path.name: StoredFile.whole(path) for path in paths if path.is_file()}
    elif source.is_file():
        files = _members(source, names)
    else:
        raise CheckpointError(
            f"{source}: no such file or directory; give a token2wav directory or its .tar"
        )
    for name, file in files.items():
        limit = LARGEST_TEXT_BYTES if name.endswith(TEXT_SUFFIXES) else LARGEST_FILE_BYTES
        if file.size > limit:
            raise CheckpointError(f"{file}: {file.size} bytes, where {limit} are the most")
    return files


class _Headers(io.FileIO):
    """The tar for its reader, which must not be talked into reading much at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _members(path: Path, names: Collection[str]) -> Shelf:
    """The wanted members of a tar by their last name; links, folders and other names are passed."""
    found: Shelf = {}
    held = path.stat().st_size
    try:
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for number, member in enumerate(archive):
                name = PurePosixPath(member.name).name
                if number >= MOST_MEMBERS:
                    raise CheckpointError(f"{path}: over {MOST_MEMBERS} members; not a model's tar")
                if name not in names or not member.isreg() or member.issparse():
                    continue
                if name in found:
                    raise CheckpointError(f"{path}: holds {name} twice; make the tar of one model")
                if member.offset_data + member.size > held:
                    raise CheckpointError(f"{path}: cut short at {name}; copy it again")
                found[name] = StoredFile(path, name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{path}: not a readable, uncompressed tar ({error}); give the .tar as it was "
            "published, or the directory unpacked from it"
        ) from error
    return found


def find(files: Shelf, names: tuple[str, ...], source: Path) -> StoredFile:
    """The first of `names` on the shelf."""
    for name in names:
        if name in files:
            return files[name]
    raise CheckpointError(f"{source}: holds no {' or '.join(names)}; copy the whole model")
