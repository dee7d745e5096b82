"""Starting parts of a model from others' weights: a stock LLM; encoder and adapter of a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat import logs
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, hub, names, pretrained
from osum_echat.models.echat import EChatModel
from osum_echat.models.settings import read_llm_config
from osum_echat.models.stored import Stored

LLM = "llm."
HEARING = ("encoder.", "adapter.")
PROJECTION = "adapter.projection."  # to the width of the LLM, which may be another
LLM_CONFIG_FILE = "config.json"
LOG = logs.logger(__name__)


def llm_settings(directory: Path) -> dict[str, Any]:
    """The sizes of a stock LLM, as EChatSettings.llm wants them. Raises CheckpointError."""
    raw = read_llm_config(local(directory) / LLM_CONFIG_FILE)
    # transformers leaves out what equals its own default, which is untied.
    return {**raw, "tie_word_embeddings": raw.get("tie_word_embeddings", False)}


def start_llm(model: EChatModel, directory: Path) -> None:
    """Give the LLM the weights of a stock Qwen2 or Qwen3 directory of its size.

    Raises one CheckpointError listing every key that is missing, unexpected or mis-shaped.
    """
    path = pretrained.weights_file(local(directory))
    raw = {f"{LLM}{name}": value for name, value in checkpoint.open_weights(path).items()}
    _copy(path, _part(checkpoint.own_weights(model), (LLM,)), raw, model.settings.tied)


def start_encoder_adapter(model: EChatModel, place: Path) -> None:
    """Give encoder and adapter the weights of another model, ours or published.

    A projection to an LLM of another width is left as it is. Raises CheckpointError as `load`.
    """
    path = pretrained.weights_file(local(place))
    found = _part(checkpoint.read_weights(path), HEARING)
    wanted = _part(checkpoint.own_weights(model), HEARING)
    weight = f"{PROJECTION}weight"
    if weight in found and found[weight].shape != tuple(wanted[weight].shape):
        LOG.warning(
            "%s: its projection leads to an LLM of width %d, here %d: it starts anew",
            path, found[weight].shape[0], len(wanted[weight]),
        )  # fmt: skip
        found, wanted = (_without(part, PROJECTION) for part in (found, wanted))
    _copy(path, wanted, found, tied=False)


def local(place: Path) -> Path:
    """Where a source lies: fetched, if the hub has it."""
    return hub.fetch(str(place)) if hub.is_hub(place) else place


def _part(weights: Mapping[str, Any], prefixes: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if name.startswith(tuple(prefixes))}


def _without(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if not name.startswith(prefix)}


@torch.no_grad()
def _copy(
    path: Path, wanted: Mapping[str, Tensor], raw: Mapping[str, Stored], tied: bool
) -> None:
    """Copy every weight over the one of its name."""
    found = names.named_as_ours(raw, tied)
    checkpoint.check(path, wanted, found)
    for name in logs.progress(wanted, f"loading {path.name}", len(wanted)):
        value = found[name].read()
        if not checkpoint.is_finite(value):
            raise CheckpointError(f"{path}: {name} is not finite (NaN or infinite); fetch it again")
        wanted[name].copy_(value)
