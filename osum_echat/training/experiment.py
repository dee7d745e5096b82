"""One experiment is one YAML: its dataclasses, and how a file and overrides become them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from osum_echat import settings
from osum_echat.data.loader import DataSettings
from osum_echat.data.prepare import PrepareSettings
from osum_echat.errors import ConfigError
from osum_echat.training.engine import EngineSettings
from osum_echat.training.scheduler import ScheduleSettings
from osum_echat.training.stages import StageSettings
from osum_echat.training.trainer import RunSettings


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything that one training needs. Paths are relative to the working directory."""

    output: str  # checkpoints, metrics and, in `final`, the trained model
    data: DataSettings
    stage: StageSettings
    schedule: ScheduleSettings
    run: RunSettings
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    init: str | None = None  # what to start from, as for inference; None: random weights
    model: str | None = None  # model.yaml with the sizes; None: those of `init`
    tokenizer: str | None = None  # tokenizer directory; None: that of `init` or `init_llm`
    init_encoder: str | None = None  # stock Whisper that the encoder starts from
    init_llm: str | None = None  # stock Qwen2 or Qwen3 directory that the LLM starts from
    init_encoder_adapter: str | None = None  # model whose encoder and adapter to take
    keep_lora: bool = False  # train on the LoRA layers of `init` instead of merging them
    device: str = "auto"
    seed: int = 777

    RENAMED: ClassVar[dict[str, str]] = {"init_hearing": "init_encoder_adapter"}

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer or self.init_llm
        if self.init is None and (self.model is None or tokenizer is None):
            raise ConfigError("experiment: give `init`, or both `model` and `tokenizer`")


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment; each override is `key=value` with dots, e.g. run.steps=100."""
    path = Path(path)
    raw = settings.read_mapping(path)
    settings.override(raw, overrides)
    return settings.parse(Experiment, raw, path.name)


def dump(experiment: Experiment) -> str:
    """The experiment as YAML that `load` reads back."""
    text: str = yaml.safe_dump(_plain(asdict(experiment)), sort_keys=False, allow_unicode=True)
    return text


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
