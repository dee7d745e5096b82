"""Weights on disk: names, shapes and types at once, values when wanted, and never code.

Values of .pt and .safetensors files are mapped, not copied: the file's pages are the memory. So a
file must be replaced (written beside, then renamed), never overwritten, while a model uses it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat import torch_file
from osum_echat.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
SHARD_BYTES = 4 * 10**9
WRAPPING_KEYS = ("module", "model", "state_dict", "model_state_dict")


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight in a file. `read` gives a tensor of this shape and type."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Stored":
        """One whose values are at hand, or mapped."""
        tensor = tensor.detach()
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_torch_file(path: Path, placeholders: Sequence[tuple[type, str]] = ()) -> Any:
    """The content of a .pt of plain values and mapped tensors; nothing in it is run.

    placeholders: harmless classes of ours that stand in for classes named in the file. Raises
    CheckpointError for anything damaged, compressed (a bomb), or that would need code.
    """
    with torch.serialization.safe_globals(list(placeholders)):
        return torch_file.load(path)


def state_dict_file(path: Path) -> dict[str, Stored]:
    """The weights of a .pt, under its own names; a wrapping {'model': ...} is looked through."""
    raw = read_torch_file(path)
    for key in WRAPPING_KEYS:
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
    return stored_tensors(raw, path)


def stored_tensors(raw: object, path: Path) -> dict[str, Stored]:
    """A state dict as Stored; CheckpointError names what in it is no honest tensor."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{path}: holds no mapping of names to weights; give a state dict")
    wrong = [
        f"{name} ({type(value).__name__})"
        for name, value in raw.items()
        if not isinstance(value, Tensor)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: holds no mapping of names to weights: {'; '.join(wrong)}; give a state dict"
        )
    return {str(name): Stored.of(value) for name, value in raw.items()}


def safetensors_file(path: Path) -> dict[str, Stored]:
    """The weights of a .safetensors file, under its own names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: Stored.of(value) for name, value in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); copy the model again"
        ) from error


def safetensors_shards(index: Path) -> dict[str, Stored]:
    """The weights of the files that an index names; all must lie beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of safetensors files ({error})") from error
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index}: names files that do not lie beside it: {outside}")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: {', '.join(missing)}: no such file; copy the model again")
    weights: dict[str, Stored] = {}
    for name in files:
        weights |= safetensors_file(index.parent / name)
    absent = sorted(set(places) - set(weights))
    if absent:
        raise CheckpointError(f"{index}: its files lack {', '.join(absent)}; copy the model again")
    return weights


def write_safetensors(
    directory: Path, weights: Mapping[str, Stored], shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write model.safetensors, or several files with an index where one would be too large.

    Only one file's worth is held at a time, and files that are there are replaced whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(weights, shard_bytes)
    if len(shards) == 1:
        (directory / INDEX_FILE).unlink(missing_ok=True)
        write_safetensors_file(directory / WEIGHTS_FILE, weights)
        return [directory / WEIGHTS_FILE]
    written: list[Path] = []
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        path = directory / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors_file(path, {name: weights[name] for name in names})
        places |= dict.fromkeys(names, path.name)
        written.append(path)
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
    (directory / WEIGHTS_FILE).unlink(missing_ok=True)
    return written


def _shards(weights: Mapping[str, Stored], shard_bytes: int) -> list[list[str]]:
    """Names in order, as many together as fit; a weight that is too large is alone."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, value in weights.items():
        if shards[-1] and filled + value.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += value.nbytes
    return shards


def write_safetensors_file(path: Path, weights: Mapping[str, Stored]) -> None:
    """Write one file whole or not at all."""
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    values = {name: separate(value.read()) for name, value in weights.items()}
    part.touch()
    mode = part.stat().st_mode  # as the user's mask has it; safetensors writes for the owner alone
    save_file(values, part, metadata={"format": "pt"})
    part.chmod(mode)
    part.replace(path)


def write_torch_file(path: Path, weights: Iterable[tuple[Sequence[str], Stored]]) -> None:
    """Write a .pt whole or not at all; all the names of a weight share its storage."""
    raw: dict[str, Tensor] = {}
    for names, stored in weights:
        value = separate(stored.read())
        raw |= dict.fromkeys(names, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    torch.save(raw, part)
    part.replace(path)


def separate(value: Tensor) -> Tensor:
    """On the CPU, contiguous, and with no more storage behind it than its own."""
    value = value.detach().cpu().contiguous()
    own = value.numel() * value.element_size()
    return value if value.untyped_storage().nbytes() == own else value.clone()
