"""What the small trainings share: their lists, their loop with exact resume, their command."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml
from torch import Tensor

from common_utils.jobs import digest
from osum_echat import audio, cli, settings
from osum_echat.errors import ConfigError, DataError
from osum_echat.files import locked, read_jsonl
from osum_echat.logs import logger, out
from osum_echat.records import Utterance
from osum_echat.training import state as states
from osum_echat.training.scheduler import ScheduleSettings, learning_rate

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


@dataclass(slots=True)
class Progress:
    """Where a training is: everything that its next step depends on.

    parts: modules, optimizers and running means, by the names that they have in checkpoints.
    generator: of the crops.
    """

    parts: dict[str, Any]
    generator: torch.Generator
    steps: int = 0
    minutes: float = 0.0

    @classmethod
    def begin(cls, seed: int, **parts: Any) -> "Progress":
        """Before the first step."""
        return cls(parts, torch.Generator().manual_seed(seed))

    def rate(self, schedule: ScheduleSettings) -> float:
        """The learning rate of the next step."""
        return learning_rate(schedule, self.steps, self.minutes)

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


def apply(optimizer: torch.optim.Optimizer, norm: Tensor, rate: float) -> bool:
    """Step where the gradient, of that norm, is finite; then clear it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    applied = bool(torch.isfinite(norm))
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return applied


class Trainer(Protocol):
    """What the loop needs of a training."""

    progress: Progress

    def step(self) -> Mapping[str, float]:
        """One optimizer step; its figures."""
        ...

    def score(self) -> Mapping[str, float]:
        """Figures on held-out data."""
        ...

    def export(self) -> None:
        """Write what is to be used."""
        ...


def run(
    make: Callable[[], Trainer], training: Any, lists: Sequence[str], made: Path
) -> Path:
    """Train to the limit, going on from the newest checkpoint in the output. Returns `made`.

    make: reads the data and makes the trainer; training: all settings, a dataclass with `output`
    and `limits`, written beside the checkpoints; lists: what is read; made: what `export` writes.
    Raises ConfigError where the output was trained with other settings that matter or on lists that
    have changed, InputError where another training writes there or nothing can be written.
    """
    output, limits = Path(training.output), training.limits
    with locked(output / states.LOCK_FILE):
        states.tell_changes(output, training, HARMLESS, limits.changed, "limits.changed")
        checkpoint = states.newest(output)
        read = digest(*map(Path, lists)) if all(Path(one).is_file() for one in lists) else None
        if checkpoint is not None:
            state = states.load(checkpoint, torch.device("cpu"), mapped=True)
            if None not in (read, before := state.get("lists")) and before != read:
                told = f"{output}: was trained on {', '.join(lists)} as they were before"
                if not limits.changed:
                    raise ConfigError(f"{told}. Begin in another output, put them back, or go on "
                                      "with the new ones by limits.changed=true")  # fmt: skip
                log.info("%s", told)
            done = state["trainer"]
            if _ended(done["step"], done["minutes"], limits) and made.is_file():
                log.info("already finished at step %d: see %s", done["step"], output)
                return made
        trainer = make()
        _run(trainer, output, limits, asdict(training), read)
        if not made.is_file():
            trainer.export()
    return made


def _run(
    trainer: Trainer, output: Path, limits: LimitSettings, record: dict[str, Any], lists: str | None
) -> None:
    torch.set_flush_denormal(True)     # tiny optimizer moments slow a CPU down
    output.mkdir(parents=True, exist_ok=True)
    metrics = output / METRICS_FILE
    checkpoint, progress = states.newest(output), trainer.progress
    if checkpoint is not None:
        state = states.load(checkpoint, torch.device("cpu"))
        progress.load_state_dict(state["trainer"])
        with metrics.open("ab") as file:
            file.truncate(min(file.tell(), state["metrics_bytes"]))
        log.info("going on from %s", checkpoint)
    text = yaml.safe_dump(json.loads(json.dumps(record)), sort_keys=False)
    clock = saved = logged = time.monotonic()
    bad = 0
    since: list[Mapping[str, float]] = []
    while not _ended(progress.steps, progress.minutes, limits):
        since.append(trainer.step())
        bad = 0 if all(map(math.isfinite, since[-1].values())) else bad + 1
        if bad == MOST_BAD:
            raise DataError(f"{output}: step {progress.steps}: {bad} steps in a row with losses or "
                            "gradients that are not finite; lower schedule.rate")  # fmt: skip
        now = time.monotonic()
        progress.minutes += (now - clock) / 60
        clock = now
        ended = _ended(progress.steps, progress.minutes, limits)
        if progress.steps % limits.log_steps == 0 or ended:
            _report(progress, metrics, since, {"steps_per_s": len(since) / max(1e-9, now - logged)})
            since, logged = [], now
        if (now - saved >= 60 * limits.save_minutes and not bad) or ended:
            _report(progress, metrics, [trainer.score()], {})
            trainer.export()
            kept = {"trainer": progress.state_dict(), "metrics_bytes": metrics.stat().st_size,
                    "lists": lists}  # fmt: skip
            states.save(output, progress.steps, kept, text, keep=1)
            clock = saved = time.monotonic()


def _ended(step: int, minutes: float, limits: LimitSettings) -> bool:
    return 0 < limits.steps <= step or 0 < limits.minutes <= minutes


def _report(
    progress: Progress, path: Path, values: Sequence[Mapping[str, float]],
    more: Mapping[str, float],
) -> None:  # fmt: skip
    """The means of some steps as one line of the metrics and of the log."""
    line = {key: sum(one[key] for one in values) / len(values) for key in values[0]}
    line |= {**more, "step": progress.steps, "minutes": round(progress.minutes, 3)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    log.info("  ".join(f"{key} {value:.4g}" for key, value in line.items()))


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
