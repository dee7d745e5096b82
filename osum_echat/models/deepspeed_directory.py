"""What DeepSpeed's `save_checkpoint` leaves behind, read without DeepSpeed.

A directory holds `latest` (the name of the newest folder) and a folder for each step. Layout of a
folder (DeepSpeed 0.19): `mp_rank_00_model_states.pt` (ZeRO 0 to 2; `module` is the whole state dict
in the type of training) or, with ZeRO 3, `zero_pp_rank_R_mp_rank_00_model_states.pt`; beside them
`[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt` with each rank's flat
piece of the float32 weights.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.models.stored import Stored, read_torch_file, stored_tensors

LATEST_FILE = "latest"
MODEL_STATES = "*mp_rank_00_model_states.pt"
OPTIMIZER_STATES = "*zero_pp_rank_*_mp_rank_00_optim_states.pt"
RANK = re.compile(r"zero_pp_rank_(\d+)_")


class Inert:
    """Stands in for a class that DeepSpeed pickles and nobody needs; keeps and does nothing."""

    def __new__(cls, *_: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        return

    def __setstate__(self, _: object) -> None:
        return


class Stage(int):
    """Stands in for the enumeration of ZeRO stages."""


PLACEHOLDERS: tuple[tuple[type, str], ...] = (
    (Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
    (Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The flat float32 weights: groups[rank][group] is (elements,). stage: 1, 2 or 3."""

    stage: int
    groups: list[list[Tensor]]
    paddings: Sequence[Sequence[int]] | None  # elements after each parameter of each group


def step_folder(directory: Path) -> Path | None:
    """The folder of the newest step, or the directory itself if it is one; None: not such."""
    if any(directory.glob(MODEL_STATES)):
        return directory
    latest = directory / LATEST_FILE
    if latest.is_file():
        name = latest.read_text(encoding="utf-8").strip()
        folder = directory / name
        if Path(name).name == name and any(folder.glob(MODEL_STATES)):
            return folder
        if any(one.is_dir() and any(one.glob(MODEL_STATES)) for one in directory.iterdir()):
            raise CheckpointError(f"{latest}: names {name!r}, which is not there; give the folder")
        return None
    folders = [one for one in directory.iterdir() if one.is_dir() and any(one.glob(MODEL_STATES))]
    if len(folders) > 1:
        names = ", ".join(sorted(one.name for one in folders))
        raise CheckpointError(f"{directory}: no {LATEST_FILE} to choose by: give one of {names}")
    return folders[0] if folders else None


def read(directory: Path, full_precision: bool = False) -> dict[str, Stored]:
    """The weights under their own names.

    full_precision: the float32 weights of the optimizer, where ZeRO kept any; otherwise those that
    the model computed with (ZeRO 3 has only the former).
    """
    folder = step_folder(directory)
    if folder is None:
        raise CheckpointError(f"{directory}: holds no DeepSpeed checkpoint")
    models = [read_torch_file(path, PLACEHOLDERS) for path in by_rank(folder, MODEL_STATES)]
    whole = models[0]
    if not isinstance(whole, Mapping) or not isinstance(whole.get("module"), Mapping):
        raise CheckpointError(f"{folder}: its model states hold no 'module'; copy it again")
    optimizers = by_rank(folder, OPTIMIZER_STATES)
    needs_pieces = any("zero_pp_rank" in path.name for path in folder.glob(MODEL_STATES))
    if not (needs_pieces or (full_precision and optimizers)):
        return stored_tensors(whole["module"], folder)
    try:
        pieces = _pieces(folder, optimizers)
        return _assembled(models, pieces, folder)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}: not the layout of DeepSpeed's ZeRO ({type(error).__name__}: {error}); "
            "copy it again, or convert it with its own zero_to_fp32.py"
        ) from error


def by_rank(folder: Path, pattern: str) -> list[Path]:
    """The files of all ranks, in the order of ranks."""

    def rank(path: Path) -> int:
        found = RANK.search(path.name)
        return int(found.group(1)) if found else 0

    return sorted(folder.glob(pattern), key=rank)


def _pieces(folder: Path, paths: Sequence[Path]) -> Pieces:
    states = [read_torch_file(path, PLACEHOLDERS)["optimizer_state_dict"] for path in paths]
    if not states:
        raise CheckpointError(f"{folder}: no {OPTIMIZER_STATES}: ZeRO 3 keeps its weights there")
    count = states[0]["partition_count"]
    count = max(count) if isinstance(count, list) else count
    if count != len(states):
        raise CheckpointError(
            f"{folder}: written by {count} ranks, files of {len(states)} are there; copy the rest"
        )
    stage = int(states[0]["zero_stage"])
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    groups = [[piece.detach().flatten() for piece in state[key]] for state in states]
    return Pieces(stage, groups, states[0].get("param_alignment_paddings"))


def _assembled(
    models: Sequence[Mapping[str, Any]], pieces: Pieces, folder: Path
) -> dict[str, Stored]:
    """Buffers, frozen and trained weights, and the second names of shared ones."""
    whole = models[0]
    buffers = {name: whole["module"][name] for name in whole["buffer_names"]}
    weights = stored_tensors(buffers, folder)
    for name, shape in (whole["frozen_param_shapes"] or {}).items():
        parts = [model["frozen_param_fragments"][name].flatten() for model in models]
        weights[name] = _joined(parts, tuple(shape))
    weights |= _by_rank_then_place(whole, pieces) if pieces.stage == 3 else _in_a_row(whole, pieces)
    for second, first in dict(whole["shared_params"] or {}).items():
        if first in weights:
            weights[second] = weights[first]
    return weights


def _in_a_row(whole: Mapping[str, Any], pieces: Pieces) -> dict[str, Stored]:
    """ZeRO 1 and 2: in each group one parameter after the other, the row cut into ranks' pieces."""
    weights = {}
    for group, shapes in enumerate(whole["param_shapes"]):
        parts = [rank[group] for rank in pieces.groups]
        paddings = pieces.paddings[group] if pieces.paddings else [0] * len(shapes)
        start = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            stop = start + math.prod(shape)
            weights[name] = _joined(_cut(parts, start, stop), tuple(shape))
            start = stop + padding
    return weights


def _by_rank_then_place(whole: Mapping[str, Any], pieces: Pieces) -> dict[str, Stored]:
    """ZeRO 3: every parameter is cut into equal pieces, one a rank, the last one padded."""
    weights = {}
    start = 0
    for shapes in whole["param_shapes"]:
        for name, shape in shapes.items():
            stop = start + math.ceil(math.prod(shape) / len(pieces.groups))
            parts = [part for rank in pieces.groups for part in _cut(rank, start, stop)]
            weights[name] = _joined(parts, tuple(shape))
            start = stop
    return weights


def _cut(parts: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Elements start to stop of the row that the parts make; views."""
    found, begin = [], 0
    for part in parts:
        low, high = max(start, begin), min(stop, begin + len(part))
        if low < high:
            found.append(part[low - begin : high - begin])
        begin += len(part)
    if stop > begin:
        raise CheckpointError(f"the ranks' pieces end at element {begin}, {stop} are needed")
    return found


def _joined(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Stored:
    """A weight whose elements lie in the parts, one after the other; joined when it is read."""
    count = math.prod(shape)
    if sum(len(part) for part in parts) < count:
        raise CheckpointError(f"the ranks' pieces of a weight {list(shape)} are too short")

    def read() -> Tensor:
        row = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return row[:count].view(shape)

    return Stored(shape, parts[0].dtype if parts else torch.float32, read)
