"""A stage of training: which groups of parameters move, and how fast each does."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from osum_echat.errors import ConfigError
from osum_echat.models.lora import LoraSettings

GROUPS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "adapter": ("adapter.",),
    "llm": ("llm.",),
    "speech": ("speech_embedding.", "speech_head."),
}

# Upstream's ladder of names, for those who come with its configuration files.
FIRE_MODULES: dict[str, tuple[str, ...]] = {
    "link": ("adapter", "speech"),
    "encoder": ("encoder",),
    "llm": ("llm",),
    "link_and_encoder": ("encoder", "adapter", "speech"),
    "link_and_lora": ("adapter", "llm", "speech"),
    "link_and_encoder_and_lora": ("encoder", "adapter", "llm", "speech"),
}

LORA_MARK = "lora_"


@dataclass(frozen=True, slots=True)
class StageSettings:
    """`train` names groups, or `fire_module` one of upstream's names: one of the two.

    `rates` scales the learning rate of single groups, e.g. {encoder: 0.3}. `lora` gives the LLM
    LoRA layers, which train in place of its own weights; what is exported is merged when read.
    """

    train: tuple[str, ...] = ()
    fire_module: str | None = None
    rates: dict[str, float] = field(default_factory=dict)
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        if self.fire_module is not None and self.fire_module not in FIRE_MODULES:
            known = ", ".join(FIRE_MODULES)
            raise ConfigError(f"stage.fire_module: {self.fire_module!r} is not one of {known}")
        if bool(self.train) == (self.fire_module is not None):
            raise ConfigError(
                f"stage: name what trains, either train: [{', '.join(GROUPS)}] or fire_module"
            )
        for where, names in (("train", self.train), ("rates", tuple(self.rates))):
            for name in names:
                if name not in GROUPS:
                    known = ", ".join(GROUPS)
                    raise ConfigError(f"stage.{where}: {name!r} is not one of {known}")

        if self.lora is not None and "llm" not in self.groups:
            raise ConfigError("stage.lora: trains within the group llm; add it to stage.train")

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups that train."""
        return self.train if self.fire_module is None else FIRE_MODULES[self.fire_module]


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
        parameter.requires_grad_(group in settings.groups and not frozen_base)


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
        raise ConfigError(f"stage: nothing trains with the groups {', '.join(settings.groups)}")
    return [
        {
            "params": parameters,
            "name": group if decays else f"{group} (no decay)",
            "scale": settings.rates.get(group, 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (group, decays), parameters in kinds.items()
    ]
