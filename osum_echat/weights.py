"""Weight files: read without running anything in them, checked, put into modules, written whole.

Tensors of .pt and .safetensors files are mapped, not copied: the file's pages are the memory. So a
file must be replaced (written beside, then renamed), never overwritten, while a model uses it.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from osum_echat.errors import CheckpointError, InputError
from osum_echat.files import whole_file, write_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SHARD_BYTES = 4 * 10**9         # largest size of one .safetensors file
SHOWN_KEYS = 10
WRAPPING_KEYS = ("engine", "module", "model", "state_dict", "model_state_dict")
WRAPPER = "module."             # before every key where a parallel wrapper was saved along
LFS_MARK = b"version https://git-lfs"
LONGEST_REASON = 200            # of what a library says, without torch's advice to trust the file
DAMAGE = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError,
    EOFError, MemoryError, OverflowError,
)  # what torch.load raises for a file that is no checkpoint  # fmt: skip


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside an uncompressed tar, used without unpacking; name: as the tar has it."""

    tar: Path
    name: str

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"


@contextmanager
def opened(source: Path | TarMember) -> Iterator[IO[bytes]]:
    """The bytes of a file or of a member of a tar. Raises CheckpointError if they are not there."""
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                if file.read(len(LFS_MARK)) == LFS_MARK:
                    raise CheckpointError(f"{source}: a pointer of Git LFS; run git lfs pull")
                file.seek(0)
                yield file
            return
        with tarfile.open(source.tar, "r:") as archive:
            member = archive.extractfile(source.name)
            assert member is not None, "a folder was taken for a file"
            yield member
    except (OSError, tarfile.TarError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{source}: cannot be read ({reason}); copy it again") from error


def read(source: Path | TarMember) -> dict[str, Tensor]:
    """The tensors of a .pt, a .safetensors file or an index of those, under their own names.

    They are mapped from disk; those of a member of a tar are read whole. A mapping in the mapping
    ({'model': ...}) and the name of a parallel wrapper are looked through; what is no tensor (an
    epoch) is left out. Raises CheckpointError.
    """
    name = source.name
    if name.endswith(".index.json") and isinstance(source, Path):
        return _read_shards(source)
    if name.endswith(".safetensors"):
        return _read_safetensors(source)
    if not name.endswith(TORCH_SUFFIXES):
        raise CheckpointError(
            f"{source}: no file of weights; give a directory, a .safetensors, {INDEX_FILE} or one "
            f"of {', '.join(TORCH_SUFFIXES)}"
        )
    raw = read_torch_file(source)
    for key in WRAPPING_KEYS:
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
    tensors = {str(key): value.detach() for key, value in raw.items() if isinstance(value, Tensor)
               } if isinstance(raw, Mapping) else {}  # fmt: skip
    if not tensors or any(value.layout != torch.strided for value in tensors.values()):
        raise CheckpointError(f"{source}: holds no mapping of names to weights; give a state dict")
    if all(key.startswith(WRAPPER) for key in tensors):
        return {key.removeprefix(WRAPPER): value for key, value in tensors.items()}
    return tensors


def read_torch_file(source: Path | TarMember) -> Any:
    """The content of a .pt: plain values and tensors. Nothing in the file is run.

    Raises CheckpointError for a file that is cut short, compressed (a bomb), not from torch.save,
    or whose pickle asks for anything but plain tensors.
    """
    with opened(source) as file:
        _check_zip(file, source)
        try:
            if isinstance(source, Path):
                return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, *DAMAGE) as error:
            lines = str(error).splitlines() or [repr(error)]
            named = [line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line]
            is_code = isinstance(error, pickle.UnpicklingError)     # or may be; torch cannot know
            said = (
                "holds more than plain tensors, which could be code; nothing was run" if is_code
                else "not readable as weights"
            )  # fmt: skip
            raise CheckpointError(
                f"{source}: {said} ({(named or lines)[0][:LONGEST_REASON]}); save it again by "
                "torch.save, as a dict of plain tensors"
            ) from error


def _check_zip(file: IO[bytes], source: Path | TarMember) -> None:
    """Raises CheckpointError for what torch.save does not write; the file is at its start after."""
    size = file.seek(0, io.SEEK_END)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(
            f"{source}: cut short, or not written by torch.save of 1.6 or newer ({error}); "
            "copy it again"
        ) from error
    declared = sum(entry.file_size for entry in entries)
    if declared > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{source}: declares {declared} bytes in {size}, or is compressed; torch.save never "
            "writes that, so it is not opened"
        )
    file.seek(0)


def _read_safetensors(source: Path | TarMember) -> dict[str, Tensor]:
    try:
        with opened(source) as file:
            if isinstance(source, Path):
                return safetensors.torch.load_file(source)
            return safetensors.torch.load(file.read())
    except SafetensorError as error:
        raise CheckpointError(f"{source}: cannot be read ({error}); copy it again") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index names; all must lie beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of safetensors files ({error})") from error
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index}: names files that do not lie beside it: {outside}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= _read_safetensors(index.parent / name)
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise CheckpointError(f"{index}: its files lack {', '.join(absent)}; copy the model again")
    return tensors


class _NoFirstValues(TorchFunctionMode):
    """Inside, the functions of torch.nn.init do nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def empty() -> Iterator[None]:
    """Inside, modules are made on the meta device: shapes without values, in no time."""
    with torch.device("meta"), _NoFirstValues():
        yield


def check(
    where: object, expected: Mapping[str, Tensor], found: Mapping[str, Tensor],
    advice: str = "take the weights and the settings from one model",
) -> None:  # fmt: skip
    """Raise one CheckpointError on all differences in names, shapes and kinds of type."""
    both = [name for name in expected if name in found]
    kinds = (
        [f"mis-shaped: {name} {_size(found[name])} there, {_size(expected[name])} by the settings"
         for name in both if found[name].shape != expected[name].shape],
        [f"unexpected: {name} {_size(found[name])}" for name in found if name not in expected],
        [f"missing: {name} {_size(expected[name])}" for name in expected if name not in found],
        [f"of the wrong type: {name} {found[name].dtype}" for name in both
         if expected[name].is_floating_point() and not found[name].is_floating_point()],
    )  # fmt: skip
    faults = [fault for some in zip_longest(*kinds) for fault in some if fault is not None]
    if faults:
        raise CheckpointError(
            f"{where}: {len(faults)} keys do not fit the settings: {shown(faults)}; {advice}"
        )


def check_finite(where: object, broken: Sequence[str]) -> None:
    """Raise one CheckpointError where there are `broken` weights, named with their sizes."""
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} weights are not finite (NaN or infinite): {shown(broken)}; "
            "copy it again, or take an earlier one"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; the extremes tell, without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Put `tensors` into `module`, every key of both sides accounted for, of one shape and finite.

    A module on the meta device takes the tensors themselves where their type fits, without a copy.
    """
    wanted = module.state_dict()
    check(where, wanted, tensors)
    check_finite(where, [f"{name} {_size(tensors[name])}" for name in wanted
                         if not is_finite(tensors[name])])  # fmt: skip
    if any(value.is_meta for value in wanted.values()):
        fitting = {name: tensors[name].to(value.dtype) for name, value in wanted.items()}
        module.load_state_dict(fitting, assign=True)
    else:
        module.load_state_dict(tensors)


def shown(faults: Sequence[str]) -> str:
    """The first few faults, and how many more there are."""
    more = len(faults) - SHOWN_KEYS
    return "; ".join(faults[:SHOWN_KEYS]) + (f"; and {more} more" if more > 0 else "")


def _size(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def write_safetensors(
    directory: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write model.safetensors, or several files with an index where one would be too large.

    Files that are there are replaced whole. Raises InputError where they cannot be written.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=shard_bytes)
    for name, keys in split.filename_to_tensors.items():
        write_safetensors_file(directory / name, {key: tensors[key] for key in keys})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(directory / INDEX_FILE, index)
    (directory / (WEIGHTS_FILE if split.is_sharded else INDEX_FILE)).unlink(missing_ok=True)
    return [directory / name for name in split.filename_to_tensors]


def write_safetensors_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one file whole or not at all. Raises InputError where it cannot be written."""
    values: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = _separate(tensor)
        values[name] = value.clone() if value.data_ptr() in seen else value  # never shared there
        seen.add(value.data_ptr())
    with _written(path) as file:
        part = Path(file.name)
        mode = part.stat().st_mode      # by the user's mask; safetensors writes for the owner alone
        safetensors.torch.save_file(values, part, metadata={"format": "pt", **(metadata or {})})
        part.chmod(mode)


def write_torch_file(path: Path, tensors: Iterable[tuple[Sequence[str], Tensor]]) -> None:
    """Write a .pt whole or not at all; all the names of a tensor share its storage.

    Raises InputError where it cannot be written.
    """
    raw: dict[str, Tensor] = {}
    for names, tensor in tensors:
        raw |= dict.fromkeys(names, _separate(tensor))
    with _written(path) as file:
        torch.save(raw, file)


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """As whole_file; both libraries tell a full disk by an error of their own."""
    try:
        with whole_file(path) as file:
            yield file
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: not written; is the disk full? ({error})") from error


def _separate(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and with no more storage behind it than its own."""
    value = tensor.detach().cpu().contiguous()
    own = value.numel() * value.element_size()
    return value if value.untyped_storage().nbytes() == own else value.clone()
