"""Weight files of token to wav: reading `.pt` and safetensors, and loading them without gaps."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from osum_echat.errors import CheckpointError

SHOWN_KEYS = 8


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file; other entries of a training checkpoint (epoch, step) go."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable weight file ({first})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds {type(raw).__name__}, not a dict of tensors")
    return {key: value for key, value in raw.items() if isinstance(value, Tensor)}


def fill(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy `tensors` into `module`, every key of both sides accounted for and of one shape."""
    wanted = module.state_dict()
    faults = [f"{key} missing" for key in wanted if key not in tensors]
    faults += [f"{key} not known" for key in tensors if key not in wanted]
    faults += [
        f"{key} {tuple(tensors[key].shape)}, need {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if faults:
        more = len(faults) - SHOWN_KEYS
        shown = "; ".join(faults[:SHOWN_KEYS]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(
            f"{where}: {len(faults)} keys differ from the settings: {shown}. "
            "Take the weights and the yaml from the same model"
        )
    module.load_state_dict(tensors)
