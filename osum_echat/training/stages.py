"""A stage of training: which groups of parameters move, how fast, and their running mean (EMA)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from osum_echat.errors import ConfigError
from osum_echat.models.lora import LoraSettings
from osum_echat.settings import check_word

GROUPS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "adapter": ("adapter.", "ctc_labels."),
    "llm": ("llm.",),
    "speech": ("speech_embedding.", "speech_head."),
}

LORA_MARK = "lora_"


@dataclass(frozen=True, slots=True)
class StageSettings:
    """`train` names the groups that train; `rates` scales the learning rate of single ones.

    `lora` gives the LLM LoRA layers, which train in place of its own weights; what is exported is
    merged when read.
    """

    train: tuple[str, ...]
    rates: dict[str, float] = field(default_factory=dict)
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError(f"stage.train: name what trains: {', '.join(GROUPS)}")
        for where, names in (("train", self.train), ("rates", tuple(self.rates))):
            for name in names:
                check_word(f"stage.{where}", name, GROUPS)
        for name, rate in self.rates.items():
            if not 0.0 <= rate < float("inf"):
                raise ConfigError(f"stage.rates: {name} {rate}, need 0 or more")
        if self.lora is not None and "llm" not in self.train:
            raise ConfigError("stage.lora: trains within the group llm; add it to stage.train")


def group_of(parameter_name: str) -> str:
    """The group that a parameter of EChat belongs to."""
    for group, prefixes in GROUPS.items():
        if parameter_name.startswith(prefixes):
            return group
    raise ConfigError(f"parameter {parameter_name!r} belongs to no group of {', '.join(GROUPS)}")


def freeze(model: nn.Module, settings: StageSettings) -> None:
    """Switch gradients on for the parameters that train in this stage, and off for the rest.

    A model with LoRA trains only its LoRA matrices within the group `llm`.
    """
    names = [name for name, _ in model.named_parameters()]
    with_lora = any(LORA_MARK in name for name in names)
    for name, parameter in model.named_parameters():
        group = group_of(name)
        frozen_base = with_lora and group == "llm" and LORA_MARK not in name
        parameter.requires_grad_(group in settings.train and not frozen_base)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter of all that trains."""
    return ((name, part) for name, part in model.named_parameters() if part.requires_grad)


def optimizer_groups(
    model: nn.Module, settings: StageSettings, weight_decay: float
) -> list[dict[str, object]]:
    """Parameter groups for the optimizer: by stage group, and by whether they decay.

    Vectors (biases and norms) do not decay. Each has `scale`, the factor of its learning rate.
    """
    kinds: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
        kinds.setdefault((group_of(name), parameter.dim() > 1), []).append(parameter)
    if not kinds:
        raise ConfigError(f"stage: nothing trains with the groups {', '.join(settings.train)}")
    return [
        {
            "params": parameters,
            "scale": settings.rates.get(group, 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (group, decays), parameters in kinds.items()
    ]


class WeightAverage:
    """Exponential mean of what trains in `model`, which often answers better than the last step's.

    Early on it forgets faster, as 1 in 10 steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._weights = dict(trained_parameters(model))
        self._means = {name: part.detach().clone() for name, part in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights: list[Tensor] = [part.detach() for part in self._weights.values()]
        torch._foreach_lerp_(list(self._means.values()), weights, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model holds the means; after it, its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, part in self._weights.items():
            kept = part.detach().clone()
            part.copy_(self._means[name])
            self._means[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For an exact resume."""
        return {"steps": self.steps, "means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.steps = state["steps"]
        for name, mean in self._means.items():
            mean.copy_(state["means"][name])
