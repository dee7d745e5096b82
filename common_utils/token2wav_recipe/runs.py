"""The loop of a small training: to its limit, with checkpoints, metrics and exact resume."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from osum_echat.errors import ConfigError
from osum_echat.logs import logger
from osum_echat.training import state as states

METRICS_FILE = "metrics.jsonl"

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """When a run ends, saves and logs."""

    minutes: float = 0.0               # over all resumes; 0: no limit
    steps: int = 0                     # optimizer steps; 0: no limit
    save_minutes: float = 4.0
    log_steps: int = 20

    def __post_init__(self) -> None:
        if not (self.minutes or self.steps):
            raise ConfigError("limits: give minutes or steps")


class Trainer(Protocol):
    """What the loop needs of a training."""

    step_number: int
    minutes: float

    def step(self) -> Mapping[str, float]:
        """One optimizer step; its figures."""
        ...

    def score(self) -> Mapping[str, float]:
        """Figures on held-out data."""
        ...

    def export(self) -> None:
        """Write what is to be used."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


def run(trainer: Trainer, output: Path, limits: LimitSettings, settings: dict[str, Any]) -> None:
    """Train to the limit, going on from the newest checkpoint in `output`.

    settings: written beside the checkpoints, as the record of what was run.
    """
    torch.set_flush_denormal(True)     # tiny optimizer moments slow a CPU down
    output.mkdir(parents=True, exist_ok=True)
    metrics = output / METRICS_FILE
    checkpoint = states.newest(output)
    if checkpoint is not None:
        state = states.load(checkpoint, torch.device("cpu"))
        trainer.load_state_dict(state["trainer"])
        with metrics.open("ab") as file:
            file.truncate(state["metrics_bytes"])
        log.info("going on from %s", checkpoint)
    text = yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False)
    clock = saved = logged = time.monotonic()
    since: list[Mapping[str, float]] = []
    while not _ended(trainer, limits):
        since.append(trainer.step())
        now = time.monotonic()
        trainer.minutes += (now - clock) / 60
        clock = now
        ended = _ended(trainer, limits)
        if trainer.step_number % limits.log_steps == 0 or ended:
            _report(trainer, metrics, since, {"steps_per_s": len(since) / max(1e-9, now - logged)})
            since, logged = [], now
        if now - saved >= 60 * limits.save_minutes or ended:
            _report(trainer, metrics, [trainer.score()], {})
            trainer.export()
            kept = {"trainer": trainer.state_dict(), "metrics_bytes": metrics.stat().st_size}
            states.save(output, trainer.step_number, kept, text, keep=1)
            clock = saved = time.monotonic()


def _ended(trainer: Trainer, limits: LimitSettings) -> bool:
    done = 0 < limits.steps <= trainer.step_number
    return done or 0 < limits.minutes <= trainer.minutes


def _report(
    trainer: Trainer, path: Path, values: Sequence[Mapping[str, float]], more: Mapping[str, float]
) -> None:
    """The means of some steps as one line of the metrics and of the log."""
    line = {key: sum(one[key] for one in values) / len(values) for key in values[0]}
    line |= {**more, "step": trainer.step_number, "minutes": round(trainer.minutes, 3)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    log.info("  ".join(f"{key} {value:.4g}" for key, value in line.items()))
