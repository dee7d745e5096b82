"""Weight files of token to wav: `.pt` and safetensors read, and a module filled without gaps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from osum_echat import torch_file
from osum_echat.errors import CheckpointError
from osum_echat.stored_file import StoredFile

SHOWN_KEYS = 8
WRAPPER = "module."             # before every key where a parallel wrapper was saved along


def read(source: Path | StoredFile) -> dict[str, Tensor]:
    """The tensors of a weight file; other entries of a training checkpoint (epoch, step) go.

    They are mapped from disk where that can be: read when used, and nothing in a `.pt` is run.
    Raises CheckpointError for a file that is missing, damaged, or holds anything but a dict.
    """
    file = StoredFile.whole(source) if isinstance(source, Path) else source
    if not file.name.endswith(".safetensors"):
        raw = torch_file.load(file.path, file.start, file.size, str(file))
    else:
        try:
            raw = (
                safetensors.torch.load_file(file.path) if file.is_whole
                else safetensors.torch.load(file.read())
            )  # fmt: skip
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: not a readable weight file ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: holds {type(raw).__name__}, not a dict of tensors")
    tensors = {key: value for key, value in raw.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{file}: holds no tensors; give a dict of names and weights")
    if all(key.startswith(WRAPPER) for key in tensors):
        return {key.removeprefix(WRAPPER): value for key, value in tensors.items()}
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


def fill(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Put `tensors` into `module`, every key of both sides accounted for, of one shape and finite.

    A module on the meta device takes the tensors themselves where their type fits, without a copy.
    """
    wanted = module.state_dict()
    faults = [f"{key} missing" for key in wanted if key not in tensors]
    faults += [f"{key} not known" for key in tensors if key not in wanted]
    faults += [
        f"{key} {tuple(tensors[key].shape)}, need {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if faults:
        raise CheckpointError(
            f"{where}: {len(faults)} keys differ from the settings: {_shown(faults)}. "
            "Take the weights and the yaml from the same model"
        )
    broken = [key for key in wanted if not _is_finite(tensors[key])]
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} keys hold numbers that are not finite: {_shown(broken)}. "
            "Copy the file again, or take an earlier checkpoint"
        )
    fitting = {key: tensors[key].to(value.dtype) for key, value in wanted.items()}
    is_empty = any(value.is_meta for value in wanted.values())
    module.load_state_dict(fitting, assign=is_empty)


def _is_finite(tensor: Tensor) -> bool:
    """Of all its numbers; the extremes tell, without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _shown(faults: list[str]) -> str:
    more = len(faults) - SHOWN_KEYS
    return "; ".join(faults[:SHOWN_KEYS]) + (f"; and {more} more" if more > 0 else "")
