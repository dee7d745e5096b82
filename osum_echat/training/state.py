"""The state of a training on disk: whole directories, the newest few, safe against kills."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from osum_echat.errors import CheckpointError
from osum_echat.logs import logger

LOG = logger(__name__)
FOLDER = "checkpoints"
STATE_FILE = "state.pt"
LATEST_FILE = "latest"


def save(output: Path, step: int, state: dict[str, Any], config_text: str, keep: int) -> Path:
    """Write `checkpoints/step_N` whole or not at all, name it in `latest`, drop the oldest.

    A kill at any moment leaves the earlier checkpoints and `latest` as they were.
    """
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}"
    half_done = folder / f".{target.name}.part"
    shutil.rmtree(half_done, ignore_errors=True)
    half_done.mkdir()
    (half_done / "config.yaml").write_text(config_text, encoding="utf-8")
    with (half_done / STATE_FILE).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    half_done.rename(target)
    _replace_text(folder / LATEST_FILE, target.name)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(output: Path) -> Path | None:
    """The checkpoint to go on from, or None where there is none."""
    folder = output / FOLDER
    latest = folder / LATEST_FILE
    if latest.is_file():
        named = folder / latest.read_text(encoding="utf-8").strip()
        if (named / STATE_FILE).is_file():
            return named
    complete = _complete(folder)
    return complete[-1] if complete else None


def load(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """Read the state of a checkpoint; plain values and tensors only."""
    path = checkpoint / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove {checkpoint} to go on from the one before"
        ) from error
    return state


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(one for one in folder.glob("step_*") if (one / STATE_FILE).is_file())


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)
