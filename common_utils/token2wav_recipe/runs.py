"""What the small trainings share: their lists, their loop with exact resume, their command."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from osum_echat import audio, cli, settings, weights
from osum_echat import device as devices
from osum_echat.errors import ConfigError, DataError
from osum_echat.files import locked, read_jsonl
from osum_echat.logs import logger, out, progress
from osum_echat.records import Utterance
from osum_echat.training import state as states
from osum_echat.training.engine import PRECISIONS, compute_dtype
from osum_echat.training.scheduler import ScheduleSettings, ending, learning_rate
from osum_echat.training.stages import WeightAverage

METRICS_FILE = "metrics.jsonl"
MOST_BAD = 10                           # steps in a row before giving up
LEAST_S = 0.025                         # of sound in a row: a window of features
HARMLESS = ("limits.", "output", "out", "device", "schedule.total_steps", "schedule.budget_minutes")

T = TypeVar("T")

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class VoiceRow:
    """One recording. `voice` is None where the list does not name it; tokens: () where it has none.
    """

    where: str
    wav: Path
    segment_s: tuple[float, float] | None
    voice: str | None
    tokens: tuple[int, ...]
    raw: Mapping[str, Any]

    def load(self, rate_hz: int = audio.SAMPLE_RATE_HZ) -> Tensor:
        """Its part of the wav: (samples,). Raises DataError for one that is too short to be used.
        """
        samples = audio.load(self.wav, rate_hz, self.segment_s)
        if len(samples) < int(LEAST_S * rate_hz):
            raise DataError(f"{self.where}: {self.wav}: {len(samples) / rate_hz:.3f} s of sound, "
                            f"need {LEAST_S} s; leave the row out")  # fmt: skip
        return samples


def read_lists(paths: Sequence[str | Path]) -> list[VoiceRow]:
    """The rows of raw lists; wav paths are relative to the list's folder, or absolute."""
    rows = [_row(raw, Path(path), number) for path in paths
            for number, raw in read_jsonl(Path(path), "give the path of a raw list")]  # fmt: skip
    if not rows:
        raise DataError(f"{', '.join(map(str, paths)) or 'no list'}: holds no rows")
    return rows


def loaded(
    rows: Sequence[VoiceRow], minutes: float, rate_hz: int = audio.SAMPLE_RATE_HZ
) -> Iterator[Tensor]:
    """The sounds of the rows, (samples,) each, until there are so many minutes."""
    seconds = 0.0
    for row in progress(rows, "reading"):
        samples = row.load(rate_hz)
        yield samples
        seconds += len(samples) / rate_hz
        if seconds > 60 * minutes:
            break
    log.info("%.1f min", seconds / 60)


def _row(raw: dict[str, Any], path: Path, number: int) -> VoiceRow:
    where = f"{path} line {number}"
    found = Utterance.from_json({"txt": ""} | raw | {"key": where}, where, path.parent).user
    if not isinstance(found.audio, Path):
        raise DataError(f"{where}: no `wav`; every row needs one")
    voice = raw.get("voice", raw.get("speaker"))
    return VoiceRow(where, found.audio, found.segment_s, None if voice is None else str(voice),
                    found.reply_speech, raw)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """When a run ends, saves and logs."""

    minutes: float = 0.0               # over all resumes; 0: no limit
    steps: int = 0                     # optimizer steps; 0: no limit
    save_minutes: float = 4.0
    log_steps: int = 20
    changed: bool = False              # go on in an output that was trained with other settings

    def __post_init__(self) -> None:
        settings.check_numbers(self, "limits", "minutes steps save_minutes", 0)
        settings.check_numbers(self, "limits", "log_steps", 1)
        if not (self.minutes or self.steps):
            raise ConfigError("limits: give minutes or steps")

    def ended(self, step: int, minutes: float) -> bool:
        """Whether so many steps and minutes are all."""
        return 0 < self.steps <= step or 0 < self.minutes <= minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What every training is told beside its data and sizes."""

    output: str                        # checkpoints, metrics, and what is exported
    limits: LimitSettings
    schedule: ScheduleSettings
    average: float                     # decay of the running mean of weights that is exported
    seed: int = 777
    precision: str = "auto"            # auto | fp32 | bf16
    device: str = "auto"
    init: str | None = None            # weights to start from

    def __post_init__(self) -> None:
        settings.check_numbers(self, "training", "average", 0, 1)
        settings.check_word("training.precision", self.precision, ("auto", *PRECISIONS))


class Trainer(ABC):
    """A training: everything that its next step depends on, and the loop around the steps.

    parts: modules, optimizers and running means, by the names that they have in checkpoints.
    generator: of the crops.
    """

    def __init__(self, training: Training, name: str, model: nn.Module) -> None:
        self.device = devices.pick(training.device)
        self.dtype = compute_dtype(training.precision, self.device)
        if training.init:
            weights.fill(model, weights.read(Path(training.init)), training.init)
        model.to(self.device).train()
        limits = training.limits
        self.schedule = ending(training.schedule, limits.steps, limits.minutes)
        self.average = WeightAverage(model, training.average)
        self.parts: dict[str, Any] = {name: model, "average": self.average}
        self.generator = torch.Generator().manual_seed(training.seed)
        self.steps, self.minutes = 0, 0.0

    @abstractmethod
    def step(self) -> Mapping[str, float]:
        """One optimizer step; its figures."""

    @abstractmethod
    def score(self) -> Mapping[str, float]:
        """Figures on held-out data."""

    @abstractmethod
    def export(self) -> None:
        """Write what is to be used."""

    def rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.schedule, self.steps, self.minutes)

    def draw(self, count: int) -> int:
        """A number below `count`."""
        return int(torch.randint(count, (1,), generator=self.generator))

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain values and tensors."""
        return {
            **{name: part.state_dict() for name, part in self.parts.items()},
            "crops": self.generator.get_state(), "random": torch.get_rng_state(),
            "step": self.steps, "minutes": self.minutes,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; not all trainings kept `random` before."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["crops"].cpu())
        if "random" in state:
            torch.set_rng_state(state["random"].cpu())
        self.steps, self.minutes = state["step"], state["minutes"]

    def loop(self, output: Path, limits: LimitSettings, record: dict[str, Any]) -> None:
        """Step to the limit, and save. record: of the settings, kept beside the checkpoints."""
        torch.set_flush_denormal(True)     # tiny optimizer moments slow a CPU down
        metrics = output / METRICS_FILE
        text = yaml.safe_dump(json.loads(json.dumps(record)), sort_keys=False)
        clock = saved = logged = time.monotonic()
        bad = 0
        since: list[Mapping[str, float]] = []
        while not limits.ended(self.steps, self.minutes):
            since.append(self.step())
            bad = 0 if all(map(math.isfinite, since[-1].values())) else bad + 1
            if bad == MOST_BAD:
                raise DataError(f"{output}: step {self.steps}: {bad} steps in a row with losses or "
                                "gradients that are not finite; lower schedule.rate")  # fmt: skip
            now = time.monotonic()
            self.minutes += (now - clock) / 60
            clock = now
            ended = limits.ended(self.steps, self.minutes)
            if self.steps % limits.log_steps == 0 or ended:
                speed = {"steps_per_s": len(since) / max(1e-9, now - logged)}
                self._report(metrics, since, speed)
                since, logged = [], now
            if (now - saved >= 60 * limits.save_minutes and not bad) or ended:
                self._report(metrics, [self.score()], {})
                self.export()
                kept = {"trainer": self.state_dict(), "metrics_bytes": metrics.stat().st_size}
                states.save(output, self.steps, kept, text, keep=1)
                clock = saved = time.monotonic()

    def _report(
        self, path: Path, values: Sequence[Mapping[str, float]], more: Mapping[str, float]
    ) -> None:
        """The means of some steps as one line of the metrics and of the log."""
        line = {key: sum(one[key] for one in values) / len(values) for key in values[0]}
        line |= {**more, "step": self.steps, "minutes": round(self.minutes, 3)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("  ".join(f"{key} {value:.4g}" for key, value in line.items()))


def apply(optimizer: torch.optim.Optimizer, norm: Tensor, rate: float) -> bool:
    """Step where the gradient, of that norm, is finite; then clear it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    applied = bool(torch.isfinite(norm))
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return applied


def run(make: Callable[[], Trainer], training: Training, made: Path) -> Path:
    """Train to the limit, going on from the newest checkpoint in the output. Returns `made`.

    make: reads the data and makes the trainer; made: what `export` writes.
    Raises ConfigError where the output was trained with other settings that matter, InputError
    where another training writes there or nothing can be written.
    """
    output, limits = Path(training.output), training.limits
    with locked(output / states.LOCK_FILE):
        states.tell_changes(output, training, HARMLESS, limits.changed, "limits.changed")
        checkpoint = states.newest(output)
        state = None if checkpoint is None else states.load(checkpoint, torch.device("cpu"))
        done: dict[str, Any] = state["trainer"] if state else {}
        if done and limits.ended(done["step"], done["minutes"]) and made.is_file():
            log.info("already finished at step %d: see %s", done["step"], output)
            return made
        trainer = make()
        if state:
            trainer.load_state_dict(done)
            with (output / METRICS_FILE).open("ab") as file:
                file.truncate(min(file.tell(), state["metrics_bytes"]))
            log.info("going on from %s", checkpoint)
        trainer.loop(output, limits, asdict(training))
        if not made.is_file():
            trainer.export()
    return made


def load(kind: type[T], path: Path, overrides: Sequence[str]) -> T:
    """The settings of a training: a YAML with `key=value` overrides."""
    raw = settings.read_mapping(path)
    settings.override(raw, overrides)
    return settings.parse(kind, raw, path.name)


def door(about: str | None, kind: type[T], train: Callable[[T], Path]) -> Callable[..., int]:
    """The `main` of a trainer: CONFIG [key=value ...]. It prints what was made."""

    def main(argv: Sequence[str] | None = None) -> int:
        parser = cli.parser(about)
        parser.add_argument("config", type=Path)
        parser.add_argument("overrides", nargs="*", metavar="key=value")
        chosen = parser.parse_args(argv)
        return cli.run(parser.prog, lambda: out(
            str(train(load(kind, chosen.config, chosen.overrides)))))  # fmt: skip

    return main
