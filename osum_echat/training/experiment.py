"""One training is one YAML: its settings, and all that it works on made from them."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
import yaml

from osum_echat import device as devices
from osum_echat.data import loader as loaders
from osum_echat.data.clips import AugmentSettings
from osum_echat.data.prepare import Preparer, PrepareSettings
from osum_echat.device import Ranks
from osum_echat.errors import ConfigError
from osum_echat.files import locked, whole_folder
from osum_echat.logs import is_first_rank, logger
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.settings import check_numbers, override, parse, read_mapping
from osum_echat.tasks import PROMPTS_FILE
from osum_echat.training import state as states
from osum_echat.training import trainer
from osum_echat.training.deepspeed_engine import DeepSpeedEngine
from osum_echat.training.engine import EngineSettings, LocalEngine
from osum_echat.training.scheduler import ScheduleSettings
from osum_echat.training.stages import StageSettings
from osum_echat.training.trainer import Outcome, RunSettings, Training, finished_step
from osum_echat.training.validation import Question, answered, figures, questions
from osum_echat.vocab import TOKENIZER_FILES, Vocab

LOG = logger(__name__)
HARMLESS = (  # settings, or beginnings of them, that change nothing of what a step learns
    "output", "device", *(f"run.{item.name}" for item in fields(RunSettings)
    if item.name != "average"), "schedule.total_steps", "schedule.budget_minutes", "data.held_out",
    "data.prefetch", "data.workers", "data.bad_in_a_row", "engine.encoder_cache_file",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything that one training needs. Paths are relative to the working directory."""

    output: str  # checkpoints, metrics and, in `final`, the trained model
    data: loaders.DataSettings
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
        tokenizer = self.tokenizer or self.init_llm
        if self.init is None and (self.model is None or tokenizer is None):
            raise ConfigError("experiment: give `init`, or both `model` and `tokenizer`")


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment; each override is `key=value` with dots, e.g. run.steps=100."""
    path = Path(path)
    raw = read_mapping(path)
    override(raw, overrides)
    return parse(Experiment, raw, path.name)


def train(experiment: Experiment) -> Outcome:
    """Train as it says, going on from what its output holds.

    Raises ConfigError where that was trained with other settings that matter, InputError where
    another training writes there.
    """
    output = Path(experiment.output)
    with locked(output / states.LOCK_FILE) if is_first_rank() else nullcontext():
        states.tell_changes(output, experiment, HARMLESS, experiment.run.changed, "run.changed")
        step = finished_step(output, experiment.run)
        if step is not None:
            LOG.info("already finished at step %d: see %s", step, output)
            return Outcome(step, None)
        return trainer.train(build(experiment), experiment.run, experiment.schedule)


def dump(experiment: Experiment) -> str:
    """The experiment as YAML that `load` reads back."""
    plain = json.loads(json.dumps(asdict(experiment)))  # tuples as lists
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def build(experiment: Experiment) -> Training:
    """Vocabulary, model, data and engine of an experiment; OsumError for what is wrong."""
    torch.manual_seed(experiment.seed)
    settings = model_settings(experiment)
    vocab = vocabulary(experiment, settings)
    settings = replace(settings, llm={**settings.llm, "vocab_size": vocab.text_rows})
    preparer = Preparer(experiment.prepare, vocab, settings.encoder.mels)
    device = devices.pick(experiment.device)
    ranks = Ranks.join(device)
    loader = loaders.Loader(
        loaders.open_sources(experiment.data), preparer, experiment.data, experiment.seed,
        ranks.rank, ranks.world,
        Path(experiment.output, f"drops_{ranks.rank}.json" if ranks.rank else "drops.json"),
    )  # fmt: skip
    model = network(experiment, settings)
    if experiment.engine.deepspeed is not None and experiment.run.average:
        raise ConfigError("run.average: not with engine.deepspeed, whose weights are in pieces")
    kind = LocalEngine if experiment.engine.deepspeed is None else DeepSpeedEngine
    engine = kind(model, experiment.stage, experiment.engine, device, ranks)
    held_out = experiment.data.held_out
    if held_out:
        loaders.open_lists(held_out, experiment.data.schemes)  # a missing list is told at the start
    mels = settings.encoder.mels
    return Training(
        engine=engine,
        batches=loader,
        held_out=lambda: loaders.held_out_batches(
            held_out, Preparer(_unchanged(experiment.prepare), vocab, mels), experiment.data,
            experiment.seed,
        ),
        export=lambda directory: export(directory, experiment, engine.model, preparer),
        describe=lambda directory: describe(directory, experiment, engine.model),
        output=Path(experiment.output),
        config_text=dump(experiment),
        accumulate=experiment.engine.accumulate,
        answers=_answers(experiment, vocab, mels, engine),
    )


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


def export(directory: Path, experiment: Experiment, model: EChatModel, preparer: Preparer) -> None:
    """The trained model as a directory that a later stage or inference loads, whole or not."""
    with whole_folder(directory, replace=True) as part:
        checkpoint.save(part, model, notes=notes(experiment))
        pools = {tag: list(pool) for tag, pool in preparer.prompts.pools.items()}
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


def _answers(
    experiment: Experiment, vocab: Vocab, mels: int, engine: LocalEngine | DeepSpeedEngine
) -> Callable[[EChatModel], Mapping[str, float]] | None:  # fmt: skip
    """Asks the held-out questions of `run.check_answers`, read when first asked."""
    run, data = experiment.run, experiment.data
    if not run.check_answers:
        return None
    if not data.held_out:
        raise ConfigError("run.check_answers: needs data.held_out, a list of understanding tasks")
    if engine.has_pieces:
        raise ConfigError("run.check_answers: not with ZeRO 3, whose weights are in pieces; "
                          "set 0, or engine.deepspeed=conf/ds_zero2.json")  # fmt: skip
    prepare = replace(_unchanged(experiment.prepare), labels_only=0.0, audio_as_text=0.0)

    @cache
    def asked() -> list[Question]:
        held_out = Preparer(prepare, vocab, mels)
        rows = loaders.held_out_rows(data.held_out, held_out, data, experiment.seed)
        found = questions(rows, vocab, run.check_answers)
        if not found:
            LOG.warning("run.check_answers: data.held_out holds no understanding tasks to ask")
        return found

    def ask(model: EChatModel) -> Mapping[str, float]:
        said = answered(model, vocab, asked(), run.answer_tokens, engine.dtype)
        return figures(asked(), said)

    return ask


def _unchanged(settings: PrepareSettings) -> PrepareSettings:
    """Without masks and augmentation."""
    return replace(settings, time_masks=0, band_masks=0, augment=AugmentSettings())


def _tokenizer_directory(experiment: Experiment) -> Path:
    """The experiment's own, that of `init`, or the stock LLM's."""
    if experiment.tokenizer is not None:
        return Path(experiment.tokenizer)
    if experiment.init is not None:
        return pretrained.find(experiment.init, experiment.model).tokenizer()
    return pretrained.local(Path(str(experiment.init_llm)))
