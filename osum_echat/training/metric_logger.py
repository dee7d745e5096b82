"""What a training tells of itself: log lines, and one JSON object a line in `metrics.jsonl`."""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osum_echat.logs import logger
from osum_echat.models.loss import Score
from osum_echat.sequence import Batch
from osum_echat.training.engine import StepReport, whole_score

LOG = logger(__name__)
SPIKE = 10.0  # times the usual gradient norm
MEMORY = 0.98  # share of the past in the usual norm
WARM_STEPS = 20  # steps before anything is usual
QUIET_STEPS = 50  # after a warning of a spike


class MetricLogger:
    """Sums between two log lines; one JSON object a line in `metrics.jsonl`."""

    def __init__(self, path: Path | None, tensorboard: bool = False) -> None:
        self.path = path  # None: another process writes them
        self._curves = _curves(path) if path is not None and tensorboard else None
        self._clear()

    def _clear(self) -> None:
        self._scores: dict[str, Score] = {}
        self._norms: list[float] = []
        self._places = self._padding = self._clips = self._utterances = 0
        self._since = time.monotonic()

    @property
    def has_steps(self) -> bool:
        """Whether steps were counted since the last line."""
        return bool(self._norms)

    def add(self, report: StepReport, batches: Sequence[Batch]) -> None:
        """Count a step."""
        for task, score in report.by_task.items():
            self._scores[task] = self._scores.get(task, Score()) + score
        self._norms.append(report.norm)
        for batch in batches:
            self._places += batch.valid.numel()
            self._padding += int(batch.valid.numel() - batch.valid.sum())
            self._clips += 0 if batch.mels is None else len(batch.mels)
            self._utterances += sum(len(row) for row in batch.keys)

    def write(
        self, step: int, minutes: float, rate: float, epoch: int, minutes_left: float | None,
        memory_bytes: int,
    ) -> None:  # fmt: skip
        """One log line and one metrics line for the steps since the last."""
        seconds = max(1e-9, time.monotonic() - self._since)
        whole = whole_score(self._scores)
        line: dict[str, Any] = {
            "step": step,
            "minutes": round(minutes, 3),
            "epoch": epoch,
            "rate": rate,
            "loss": whole.loss,
            "accuracy": whole.accuracy,
            "norm": sum(self._norms) / max(1, len(self._norms)),
            "tokens_per_s": (self._places - self._padding) / seconds,
            "utterances_per_s": self._utterances / seconds,
            "clips_per_s": self._clips / seconds,
            "padding": self._padding / max(1, self._places),
            "memory_mb": memory_bytes // 2**20,
            "tasks": _by_task(self._scores),
        }
        self._append(line)
        left = "?" if minutes_left is None else "{}:{:02d} h".format(*divmod(int(minutes_left), 60))
        LOG.info(
            "step %(step)d  %(minutes).1f min  epoch %(epoch)d  loss %(loss).4f  %(words)s  "
            "norm %(norm).2f  rate %(rate).2e  %(tokens_per_s).0f tokens/s  "
            "%(utterances_per_s).1f utterances/s  padding %(padding).0f %%  %(memory_mb)d MB  "
            f"{left} left",
            line | {"words": _words(self._scores), "padding": 100.0 * line["padding"]},
        )
        self._clear()

    def write_check(
        self, step: int, scores: dict[str, Score], answers: Mapping[str, float]
    ) -> None:
        """One line of held-out scores; answers: figures of those that were generated."""
        line: dict[str, Any] = {"step": step, "held_out": _by_task(scores)}
        LOG.info("step %d  held out: %s", step, _words(scores))
        if answers:
            line["answers"] = dict(answers)
            words = "  ".join(f"{name} {100 * value:.1f} %" for name, value in answers.items())
            LOG.info("step %d  answered: %s", step, words)
        self._append(line)
        self._since = time.monotonic() if not self._norms else self._since

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Forget lines written after the checkpoint that training goes on from."""
        if self.path is not None and self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(min(size, self.size()))

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._curves is not None:
            for name, value in flat(line).items():
                self._curves.add_scalar(name, value, line["step"])
            self._curves.flush()


class EarlyWarnings:
    """Tells what should be looked at before hours are lost: each thing once, or seldom."""

    def __init__(self) -> None:
        self.usual = 0.0
        self._tasks: set[str] = set()
        self._steps = self._quiet_until = 0

    def step(self, number: int, norm: float, tasks: Collection[str]) -> None:
        """Count a step; a gradient norm far above the usual one is told, and does not become usual.

        norm: below 0 where it was not finite; 0 is told where there were tasks to learn.
        """
        self._tasks.update(tasks)
        self._steps += 1
        told = None
        if norm == 0.0 and tasks:
            told = f"no gradient: nothing of stage.train had a part in {', '.join(sorted(tasks))}"
        elif self._steps > WARM_STEPS and norm > SPIKE * self.usual:
            told = (f"gradient norm {norm:.3g}, usually {self.usual:.3g}: if the loss rises now, "
                    "lower schedule.rate or engine.clip")  # fmt: skip
        elif norm > 0.0:
            keep = min(MEMORY, 1.0 - 1.0 / self._steps)
            self.usual = keep * self.usual + (1.0 - keep) * norm
        if told and number >= self._quiet_until:
            LOG.warning("step %d: %s", number, told)
            self._quiet_until = number + QUIET_STEPS

    def check(self, scored: Iterable[str]) -> None:
        """Tell tasks that are scored but had no trained token so far."""
        for name in sorted({*scored} - self._tasks) if self._steps else ():
            LOG.warning("task %s: scored, but nothing of it was trained so far; see data.lists and "
                        "their weights", name)  # fmt: skip
            self._tasks.add(name)


def flat(line: Mapping[str, Any], place: str = "") -> dict[str, float]:
    """The numbers of a metrics line by their path: tasks/s2s/loss. The step itself is left out."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{place}{name}/")
        elif f"{place}{name}" != "step":
            found[f"{place}{name}"] = float(value)
    return found


def _curves(path: Path) -> Any:
    """A TensorBoard writer beside the metrics, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        LOG.warning("run.tensorboard: not installed (requirements-train.txt); %s goes on", path)
        return None
    return SummaryWriter(str(path.with_name("tensorboard")))


def _by_task(scores: dict[str, Score]) -> dict[str, dict[str, float]]:
    return {
        task: {"loss": score.loss, "accuracy": score.accuracy, "tokens": score.tokens}
        for task, score in sorted(scores.items())
    }


def _words(scores: dict[str, Score]) -> str:
    return "  ".join(
        f"{task} {score.loss:.3f} ({100 * score.accuracy:.0f} %)"
        for task, score in sorted(scores.items())
    )
