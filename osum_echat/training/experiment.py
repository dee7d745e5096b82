"""One training is one YAML: its settings, the model that it starts from, and what it leaves."""

import json
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
import yaml

from osum_echat.data.loader import DataSettings
from osum_echat.data.prepare import PrepareSettings
from osum_echat.errors import ConfigError
from osum_echat.files import whole_folder
from osum_echat.logs import logger
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.settings import check_numbers, override, parse, read_mapping
from osum_echat.tasks import PROMPTS_FILE, Prompts
from osum_echat.training.engine import EngineSettings
from osum_echat.training.scheduler import ScheduleSettings
from osum_echat.training.stages import StageSettings
from osum_echat.vocab import TOKENIZER_FILES, Vocab

LOG = logger(__name__)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How long a training goes on, and what it leaves behind. The first limit reached ends it."""

    steps: int = 0  # optimizer steps; 0 = no limit
    minutes: float = 0.0  # training time over all resumes; 0 = no limit
    epochs: int = 0  # passes over the data; 0 = no limit
    save_minutes: float = 5.0  # a checkpoint this often; 0 = only at the end
    keep: int = 2  # checkpoints kept
    log_steps: int = 20
    check_steps: int = 0  # held-out scores this often; 0 = only at the end
    bad_steps: int = 10  # gradients in a row that are not finite before giving up
    best: bool = False  # export the model to `best` whenever the held-out loss was never as low
    tensorboard: bool = False  # curves in `tensorboard` too; see requirements-train.txt
    check_answers: int = 0  # held-out understanding utterances answered by generation at each
    # check, for word error rate and label accuracy; 0 = none
    answer_tokens: int = 200  # of such an answer, at most
    average: float = 0.0  # decay of the running mean of weights that is exported; 0 = off
    changed: bool = False  # go on in an output that was trained with other settings

    def __post_init__(self) -> None:
        if not (self.steps or self.minutes or self.epochs):
            raise ConfigError("run: give a limit: steps, minutes or epochs")
        check_numbers(self, "run", "keep log_steps answer_tokens bad_steps", 1)
        check_numbers(self, "run", "steps minutes epochs save_minutes check_steps check_answers", 0)
        if not 0.0 <= self.average < 1.0:
            raise ConfigError(f"run.average: {self.average}, need 0 (off) to below 1")


HARMLESS = (  # settings, or beginnings of them, that change nothing of what a step learns
    "output", "device", *(f"run.{item.name}" for item in fields(RunSettings)
    if item.name != "average"), "schedule.total_steps", "schedule.budget_minutes", "data.held_out",
    "data.prefetch", "data.workers", "data.bad_in_a_row", "engine.encoder_cache_file",
)  # fmt: skip


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
        check_numbers(self, "experiment", "seed", 0)
        if self.engine.ctc_weight and not self.prepare.ctc_targets:
            raise ConfigError("engine.ctc_weight: needs prepare.ctc_targets=true")
        if self.run.best and not self.data.held_out:
            raise ConfigError("run.best: needs data.held_out, lists to score")
        if self.run.check_answers and not self.data.held_out:
            raise ConfigError("run.check_answers: needs data.held_out with understanding tasks")
        if self.run.average and self.engine.deepspeed is not None:
            raise ConfigError("run.average: not with engine.deepspeed, whose weights are in pieces")
        tokenizer = self.tokenizer or self.init_llm
        if self.init is None and (self.model is None or tokenizer is None):
            raise ConfigError("experiment: give `init`, or both `model` and `tokenizer`")


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment; each override is `key=value` with dots, e.g. run.steps=100."""
    path = Path(path)
    raw = read_mapping(path)
    override(raw, overrides)
    return parse(Experiment, raw, path.name)


def dump(experiment: Experiment) -> str:
    """The experiment as YAML that `load` reads back."""
    plain = json.loads(json.dumps(asdict(experiment)))  # tuples as lists
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def model_settings(experiment: Experiment) -> EChatSettings:
    """The sizes: those of `model`, or else of the source of `init`; the LLM's of `init_llm`."""
    if experiment.model is not None:
        settings = checkpoint.read_settings(Path(experiment.model))
    else:
        settings = checkpoint.read_settings(pretrained.find(str(experiment.init)).settings)
    if experiment.init_llm is not None:
        settings = replace(settings, llm=pretrained.llm_settings(Path(experiment.init_llm)))
    return settings


def vocabulary(experiment: Experiment, settings: EChatSettings) -> Vocab:
    """The tokenizer's; its size decides a model without `vocab_size`."""
    rows = settings.llm.get("vocab_size")
    return Vocab.from_directory(
        _tokenizer_directory(experiment), int(rows) if rows else None, settings.speech_codes
    )


def network(experiment: Experiment, settings: EChatSettings) -> EChatModel:
    """The model with the weights it starts from."""
    if experiment.init is None:
        model = EChatModel(replace(settings, lora=None))
    else:
        weights = pretrained.find(experiment.init, experiment.model).weights
        model = checkpoint.load(weights, settings, torch.float32, keep_lora=experiment.keep_lora)
    starts = (
        (experiment.init_llm, lambda place: pretrained.start_llm(model, place)),
        (experiment.init_encoder_adapter,
         lambda place: pretrained.start_encoder_adapter(model, place)),
        (experiment.init_encoder,
         lambda place: pretrained.start_encoder(model.encoder, pretrained.local(place))),
    )  # fmt: skip
    for place, start in starts:
        if place is not None:
            start(Path(place))
            LOG.info("%s starts a part of the model", place)
    if experiment.stage.lora is not None:
        model.add_lora(experiment.stage.lora)
    sizes = {name: sum(part.numel() for part in child.parameters())
             for name, child in model.named_children()}  # fmt: skip
    LOG.info("model: %s", ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items()))
    return model


def export(directory: Path, experiment: Experiment, model: EChatModel, prompts: Prompts) -> None:
    """The trained model as a directory that a later stage or inference loads, whole or not."""
    with whole_folder(directory, replace=True) as part:
        checkpoint.save(part, model, notes=notes(experiment))
        pools = {tag: list(pool) for tag, pool in prompts.pools.items()}
        if pools:
            text = yaml.safe_dump(pools, sort_keys=False, allow_unicode=True)
            (part / PROMPTS_FILE).write_text(text, encoding="utf-8")
        tokenizer = _tokenizer_directory(experiment)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, part / name)


def describe(directory: Path, experiment: Experiment, model: EChatModel) -> None:
    """Write the settings of the model as it is trained, for those who open a checkpoint."""
    tokenizer = {"tokenizer": str(_tokenizer_directory(experiment).absolute())}
    checkpoint.write_settings(directory, model.settings, notes(experiment) | tokenizer)


def notes(experiment: Experiment) -> dict[str, str]:
    """What model.yaml says beside the sizes: how the model was taught to think."""
    return {"thinking": experiment.prepare.thinking, "template": experiment.prepare.template}


def _tokenizer_directory(experiment: Experiment) -> Path:
    """The experiment's own, that of `init`, or the stock LLM's."""
    if experiment.tokenizer is not None:
        return Path(experiment.tokenizer)
    if experiment.init is not None:
        return pretrained.find(experiment.init, experiment.model).tokenizer()
    return pretrained.local(Path(str(experiment.init_llm)))
