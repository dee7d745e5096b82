"""The state of a training on disk: whole directories, the newest few, safe against kills."""

import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.files import put_in_place, whole_file
from osum_echat.logs import logger
from osum_echat.settings import differences, parse, read_mapping
from osum_echat.weights import DAMAGE, shown

LOG = logger(__name__)
FOLDER = "checkpoints"
STATE_FILE, CONFIG_FILE = "state.pt", "config.yaml"
LOCK_FILE = ".lock"
MOST_REASON = 200  # letters of a reason of torch's, which may name every weight
LATEST_FILE = "latest"


def half_done(output: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its name."""
    return output / FOLDER / f".step_{step:08d}.part"


def save(output: Path, step: int, state: dict[str, Any], config_text: str, keep: int) -> Path:
    """Write `checkpoints/step_N` whole or not at all, name it in `latest`, drop the oldest.

    What lies in its `half_done` directory already becomes part of it. A kill or a full disk at any
    moment leaves the earlier checkpoints and `latest` as they were; CheckpointError says so.
    """
    part = half_done(output, step)
    target = part.with_name(f"step_{step:08d}")
    try:
        part.mkdir(parents=True, exist_ok=True)
        (part / CONFIG_FILE).write_text(config_text, encoding="utf-8")
        with (part / STATE_FILE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(part, target)
        with whole_file(part.with_name(LATEST_FILE)) as latest:
            latest.write(f"{target.name}\n".encode())
    except (OSError, RuntimeError, InputError) as error:  # torch.save tells a full disk as Runtime
        shutil.rmtree(part, ignore_errors=True)
        free_mb = shutil.disk_usage(output).free / 1e6
        raise CheckpointError(
            f"{target}: cannot be written ({error}); {free_mb:.1f} MB are free there; "
            f"{_kept(output)}: make room, then run again"
        ) from error
    for old in _complete(part.parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def tell_changes(
    output: Path, settings: Any, harmless: tuple[str, ...], is_wanted: bool, switch: str
) -> None:
    """Log which settings differ from those that `output` was trained with last.

    settings: a dataclass; harmless: beginnings of names. Raises ConfigError where another one
    differs, unless `is_wanted`, which `switch` sets.
    """
    checkpoint = newest(output)
    if checkpoint is None:
        return
    path = checkpoint / CONFIG_FILE
    try:
        stored = parse(type(settings), read_mapping(path), path.name, stored=True)
    except ConfigError as error:
        LOG.warning("%s: not compared with these settings (%s)", path, error)
        return
    told = differences(stored, settings)
    serious = [text for name, text in told.items() if not name.startswith(harmless)]
    if serious and not is_wanted:
        raise ConfigError(
            f"{output}: was trained with other settings: {shown(serious)}. "
            f"Begin in another output, put them back, or go on with the new ones by {switch}=true"
        )
    if told:
        LOG.info("%s goes on with other settings: %s", output, "; ".join(told.values()))


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


def load(checkpoint: Path, device: torch.device, mapped: bool = False) -> dict[str, Any]:
    """Read the state of a checkpoint; plain values and tensors only. mapped: tensors stay on disk.
    """
    path = checkpoint / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(
            path, map_location=device, weights_only=True, mmap=mapped
        )
    except (OSError, UnpicklingError, *DAMAGE) as error:
        said = f"{type(error).__name__}: {error}"[:MOST_REASON]
        raise CheckpointError(
            f"{path}: cannot be read ({said}); remove {checkpoint} to go on from the one before"
        ) from error
    return state


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(one for one in folder.glob("step_*") if (one / STATE_FILE).is_file())


def _kept(output: Path) -> str:
    earlier = newest(output)
    return f"{earlier} is as it was" if earlier else "there is no checkpoint yet"
