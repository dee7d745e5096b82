"""Stored models: written as a directory or a published file, and loaded from any kind of source.

Our directory holds model.safetensors (our names, tied tables once; several files with an index when
large) and model.yaml (the settings, and keys that the assistant reads).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from osum_echat import logs
from osum_echat.errors import CheckpointError
from osum_echat.models import deepspeed_directory, lora, names, pretrained, stored
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.settings import SETTINGS_FILE, as_plain, read_settings
from osum_echat.models.stored import INDEX_FILE, SHARD_BYTES, WEIGHTS_FILE, Stored

__all__ = [
    "SETTINGS_FILE", "WEIGHTS_FILE", "check", "load", "open_weights", "own_weights",
    "read_settings", "read_weights", "save", "save_published",
]  # fmt: skip
TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def save(
    directory: Path,
    model: EChatModel,
    settings: EChatSettings | None = None,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the weights (model.safetensors, or several files with an index) and model.yaml.

    dtype: of the stored weights, None as they are; notes: further keys for model.yaml; shard_bytes:
    largest size of one file.
    """
    weights = {
        name: Stored.of(value.detach().to("cpu", dtype or value.dtype).contiguous())
        for name, value in own_weights(model).items()
    }
    stored.write_safetensors(directory, weights, shard_bytes)
    write_settings(directory, settings or model.settings, notes)


def write_settings(
    directory: Path, settings: EChatSettings, notes: Mapping[str, Any] | None = None
) -> None:
    """Write model.yaml. notes: further keys."""
    raw = as_plain(settings) | dict(notes or {})
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SETTINGS_FILE).write_text(text, encoding="utf-8")


def save_published(path: Path, model: EChatModel) -> None:
    """Write a .pt with the published key names, all aliases of the text table among them."""
    tied, has_lora = model.settings.tied, model.settings.lora is not None
    stored.write_torch_file(
        path,
        (
            (
                [names.published_name(alias, has_lora) for alias in names.aliases(name, tied)],
                Stored.of(value),
            )
            for name, value in own_weights(model).items()
        ),
    )


def own_weights(model: EChatModel) -> dict[str, Tensor]:
    """All weights of a model by name, tied ones once."""
    state = model.state_dict()
    return {name: state[name] for name in names.without_aliases(state, model.settings.tied)}


def load(
    place: Path,
    settings: EChatSettings | None = None,
    dtype: torch.dtype | None = torch.float32,
    *,
    device: torch.device | str = "cpu",
    keep_lora: bool = False,
    share: EChatModel | None = None,
) -> EChatModel:
    """A model in eval mode from a directory of ours, a published file, or DeepSpeed's directory.

    settings: None reads the YAML beside the weights; dtype: None keeps the stored types; keep_lora:
    leave LoRA layers as they are instead of merging them; share: a loaded model (for answering, not
    training) whose weights stand in for equal ones, so that these are in memory once.

    Weights on the CPU that need no conversion stay mapped to their file (see stored). Raises one
    CheckpointError that lists every key that is missing, unexpected, mis-shaped or not finite, or
    names the file that is not there.
    """
    path = pretrained.weights_file(place)
    settings = settings or read_settings(pretrained.settings_file(path))
    weights = read_weights(path, settings.tied)
    if not lora.is_trained_with(weights):
        settings = replace(settings, lora=None)
    elif settings.lora is None:
        raise CheckpointError(
            f"{path}: holds LoRA layers, and its settings no alpha: write lora: {{rank: 64, "
            f"alpha: 32}} into {SETTINGS_FILE}"
        )
    elif not keep_lora:
        weights = lora.merged(weights, settings.lora)
        settings = replace(settings, lora=None)
    with torch.device("meta"):
        model = EChatModel(settings)
    _fill(path, model, weights, dtype, torch.device(device), share)
    return model.eval()


def open_weights(path: Path) -> dict[str, Stored]:
    """The weights of a file, an index of files or a DeepSpeed directory, under their own names."""
    if path.is_dir():
        return deepspeed_directory.read(path)
    if path.name.endswith(".index.json"):
        return stored.safetensors_shards(path)
    if path.suffix == ".safetensors":
        return stored.safetensors_file(path)
    if path.suffix in TORCH_SUFFIXES:
        return stored.state_dict_file(path)
    raise CheckpointError(
        f"{path}: no file of weights; give a directory, a .safetensors, {INDEX_FILE} or one of "
        f"{', '.join(TORCH_SUFFIXES)}"
    )


def read_weights(path: Path, tied: bool = True) -> dict[str, Stored]:
    """The weights under our names, each once, without what is never read."""
    return names.named_as_ours(open_weights(path), tied)


def _fill(
    path: Path,
    model: EChatModel,
    weights: dict[str, Stored],
    dtype: torch.dtype | None,
    device: torch.device,
    share: EChatModel | None,
) -> None:
    """Give a model without memory its weights, one after the other."""
    expected = own_weights(model)
    check(path, expected, weights)
    twins = own_weights(share) if share is not None else {}
    ready: dict[str, Tensor] = {}
    broken = []
    for name in logs.progress(expected, f"loading {path.name}", len(expected)):
        kept = weights.pop(name)
        value = kept.read().to(device, dtype or kept.dtype)
        if not is_finite(value):
            broken.append(f"{name} {list(value.shape)}")
        twin = twins.get(name)
        ready[name] = twin if twin is not None and is_same(twin, value) else value
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} weights are not finite (NaN or infinite); fetch it again, or "
            f"take an earlier one: {'; '.join(broken)}"
        )
    model.load_state_dict(ready, strict=False, assign=True)
    model.llm.tie_weights()
    with torch.device(device):
        model.llm.model.rotary_emb = type(model.llm.model.rotary_emb)(model.llm.config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, place, shape and values."""
    alike = (one.dtype, one.device) == (other.dtype, other.device)
    return alike and torch.equal(one, other)


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; needs no memory of the tensor's size."""
    if not value.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(value))


def check(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Stored]) -> None:
    """Raise one CheckpointError on all differences in names, shapes and kinds of type."""
    problems = [
        f"missing: {name} {list(value.shape)}"
        for name, value in expected.items()
        if name not in found
    ]
    problems += [
        f"unexpected: {name} {list(value.shape)}"
        for name, value in found.items()
        if name not in expected
    ]
    problems += [
        f"mis-shaped: {name} {list(found[name].shape)} there, {list(value.shape)} by the settings"
        for name, value in expected.items()
        if name in found and found[name].shape != tuple(value.shape)
    ]
    problems += [
        f"of the wrong type: {name} {value.dtype}"
        for name, value in found.items()
        if name in expected and not value.dtype.is_floating_point
    ]
    if problems:
        raise CheckpointError(
            f"{path}: {len(problems)} keys do not fit {SETTINGS_FILE}; use the weights "
            f"and settings of one model: {'; '.join(problems)}"
        )
