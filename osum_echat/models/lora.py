"""LoRA layers in the LLM: in files trained with them, and in a model that goes on with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.settings import check_numbers

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
# As published: not up_proj.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A weight changes by alpha / rank times up @ down. The defaults are the published ones."""

    rank: int = 64
    alpha: float = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = TARGETS
    top_layers: int | None = None  # only in so many blocks next to the heads; None: in all

    def __post_init__(self) -> None:
        if self.top_layers is not None:
            check_numbers(self, "lora", "top_layers", 1)
        check_numbers(self, "lora", "rank", 1)
        if self.alpha <= 0:
            raise ConfigError(f"lora.alpha: {self.alpha}, must be above 0")
        if not self.targets or "lm_head" in self.targets:
            raise ConfigError(
                f"lora.targets: {list(self.targets)}: name layers of the blocks, such as q_proj"
            )


def add_layers(llm: nn.Module, settings: LoraSettings) -> None:
    """Give the target layers of an LLM their LoRA layers, in place; the change starts as zero."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, one in llm.named_modules() if isinstance(one, nn.Linear)]
    lost = [target for target in settings.targets
            if not any(f".{name}".endswith(f".{target}") for name in layers)]  # fmt: skip
    if lost:
        names = sorted({name.rpartition(".")[2] for name in layers} - {"lm_head"})
        raise ConfigError(f"lora.targets: {', '.join(lost)}: the LLM has {', '.join(names)}")
    blocks = range(llm.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    top = None if settings.top_layers is None else list(blocks)[-settings.top_layers :]
    config: Any = LoraConfig(
        layers_to_transform=top, layers_pattern=None if top is None else "layers", r=settings.rank,
        lora_alpha=int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,
        lora_dropout=settings.dropout, target_modules=list(settings.targets), bias="none",
    )  # fmt: skip
    inject_adapter_in_model(config, llm)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A weight, (out, in), and its LoRA layers: scale times up, (out, rank), @ down, (rank, in)."""

    base: Tensor
    down: Tensor
    up: Tensor
    scale: float

    def merged(self) -> Tensor:
        """The changed weight, added up in float32 and rounded once, to the type of its base."""
        change = self.up.float() @ self.down.float()
        whole = self.base.to(torch.float32, copy=True).add_(change, alpha=self.scale)
        return whole.to(self.base.dtype)


def changes(weights: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Change]:
    """The layers that LoRA changes, by name. Raises CheckpointError for what does not fit."""
    found = {}
    for name in weights:
        target = name.removesuffix(DOWN)
        if target == name:
            continue
        if f"{target}{UP}" not in weights:
            raise CheckpointError(f"{target}: lora_A without lora_B; copy the model again")
        base, down, up = (weights[f"{target}{end}"] for end in (f"{BASE}weight", DOWN, UP))
        fits = (up.shape[:1], down.shape[1:]) == (base.shape[:1], base.shape[1:])
        if not fits or down.shape[0] != settings.rank or up.shape[1] != settings.rank:
            raise CheckpointError(
                f"{target}: lora_A {list(down.shape)} and lora_B {list(up.shape)} do not fit the "
                f"base {list(base.shape)} and rank {settings.rank}; see lora_rank or lora.rank in "
                "the settings"
            )
        found[target] = Change(base, down, up, settings.alpha / settings.rank)
    return found


def merged(weights: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Tensor]:
    """The weights of the plain model that computes the same."""
    known = changes(weights, settings)
    plain = {
        name.replace(BASE, "."): value
        for name, value in weights.items() if not name.endswith((DOWN, UP))
    }  # fmt: skip
    return plain | {f"{name}.weight": change.merged() for name, change in known.items()}
