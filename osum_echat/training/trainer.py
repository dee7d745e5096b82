"""The training loop: steps, log, held-out scores, checkpoints, and going on after any stop."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType

import torch

from osum_echat import device as devices
from osum_echat.data.batching import Place
from osum_echat.data.loader import Loader
from osum_echat.errors import CheckpointError, ConfigError, DataError
from osum_echat.logs import logger
from osum_echat.models.echat import EChatModel
from osum_echat.sequence import Batch
from osum_echat.settings import check_numbers
from osum_echat.training import engine as engines
from osum_echat.training import state as states
from osum_echat.training.deepspeed_engine import DeepSpeedEngine
from osum_echat.training.metric_logger import EarlyWarnings, MetricLogger
from osum_echat.training.scheduler import ScheduleSettings, ending, learning_rate
from osum_echat.training.stages import WeightAverage

LOG = logger(__name__)
METRICS_FILE = "metrics.jsonl"
FINAL_FOLDER, BEST_FOLDER = "final", "best"


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


@dataclass(frozen=True, slots=True)
class Training:
    """What the loop works on.

    export: writes the model as a directory to load from; describe: only its settings.

    answers: figures of held-out questions that the model answers by generation; None: not asked.
    """

    engine: engines.LocalEngine | DeepSpeedEngine
    batches: Loader
    held_out: Callable[[], Sequence[Batch]]
    export: Callable[[Path], None]
    describe: Callable[[Path], None]
    output: Path
    config_text: str
    accumulate: int = 1
    answers: Callable[[EChatModel], Mapping[str, float]] | None = None


@dataclass(slots=True)
class Progress:
    """Where a training is. `minutes` sums up all its runs."""

    step: int = 0
    minutes: float = 0.0
    bad_in_a_row: int = 0
    finished: bool = False
    best: float = float("inf")  # lowest held-out loss
    epoch: int = 0  # of the last batch


@dataclass(frozen=True, slots=True)
class Outcome:
    """How `train` ended: `signal` is None where a limit was reached."""

    step: int
    signal: int | None


def limit_of(run: RunSettings, progress: Progress) -> str | None:
    """The limit of steps, minutes or epochs that is reached, in words; None: none is."""
    limits = (("run.steps", run.steps, progress.step), ("run.minutes", run.minutes,
              progress.minutes), ("run.epochs", run.epochs, progress.epoch))  # fmt: skip
    return next((f"{name} {limit:g}" for name, limit, now in limits if 0 < limit <= now), None)


def finished_step(output: Path, run: RunSettings) -> int | None:
    """Where a training ended for good; None: it has not, limits were raised, or `final` is gone."""
    checkpoint = states.newest(output)
    if checkpoint is None or not (output / FINAL_FOLDER).is_dir():
        return None
    progress = Progress(**states.load(checkpoint, torch.device("cpu"), mapped=True)["progress"])
    return progress.step if progress.finished and limit_of(run, progress) else None


def train(training: Training, run: RunSettings, schedule: ScheduleSettings) -> Outcome:
    """Train until a limit or a signal, going on from the newest checkpoint in the output."""
    torch.set_flush_denormal(True)  # tiny optimizer moments cost a CPU up to half its speed
    with states.write_errors_told(training.output):
        loop = _Loop(training, run, ending(schedule, run.steps, run.minutes))
        loop.resume()
        with _signals() as caught:
            while not ((decision := loop.decide(caught)).signal or decision.ended):
                if decision.saves:
                    loop.save()
                loop.one_step()
        step = loop.progress.step
        if not decision.signal:
            loop.finish()
            return Outcome(step, None)
        loop.save()
        LOG.warning("stopped by signal %d at step %d; run again to go on", decision.signal, step)
        return Outcome(step, decision.signal)


@dataclass(frozen=True, slots=True)
class Decision:
    """What all processes do next. signal: 0: none was caught."""

    signal: int
    ended: bool
    saves: bool


class _Loop:
    """The moving parts of one call of `train`."""

    def __init__(self, training: Training, run: RunSettings, schedule: ScheduleSettings) -> None:
        self.training = training
        self.run = run
        self.schedule = schedule
        self.progress = Progress()
        self.average = WeightAverage(training.engine.model, run.average) if run.average else None
        self.ranks = training.engine.ranks
        self.rate = 0.0
        self.metrics = MetricLogger(
            training.output / METRICS_FILE if self.ranks.is_first else None, run.tensorboard
        )
        self.warnings = EarlyWarnings()
        self._clock = time.monotonic()
        self._saved_at = self._clock
        self._held_out: Sequence[Batch] | None = None
        self._checked_at = -1

    def tick(self) -> None:
        """Add the time since the last tick to the training's minutes."""
        now = time.monotonic()
        self.progress.minutes += (now - self._clock) / 60.0
        self._clock = now

    def decide(self, caught: Sequence[int]) -> Decision:
        """The first process's clock, rate and limits, and any process's signal, told to all."""
        saves = 0 < self.run.save_minutes * 60.0 <= time.monotonic() - self._saved_at
        first = self.ranks.is_first
        minutes, ended, saved, signal_number = self.ranks.all_reduce_max((
            self.progress.minutes if first else 0.0,
            float(first and self.limit_reached() is not None),
            float(first and saves),
            float(caught[0]) if caught else 0.0,
        ))  # fmt: skip
        self.progress.minutes = minutes
        self.rate = learning_rate(self.schedule, self.progress.step, minutes)
        return Decision(int(signal_number), bool(ended), bool(saved))

    def limit_reached(self) -> str | None:
        """The limit that is used up, in words."""
        self.progress.epoch = self.training.batches.epoch
        return limit_of(self.run, self.progress)

    def one_step(self) -> None:
        """Batches, optimizer step, and whatever is due after it."""
        batches = [next(self.training.batches) for _ in range(self.training.accumulate)]
        report = self._engine_step(batches, self.rate)
        self._guard(report, batches)
        self.progress.step += 1
        norm = report.norm if engines.is_finite(report.norm) else -1.0
        self.warnings.step(self.progress.step, norm, report.by_task)
        if self.average is not None and report.applied:
            self.average.update()
        self.tick()
        self.metrics.add(report, batches)
        if self.progress.step % self.run.log_steps == 0:
            self.write_metrics()
        if self.run.check_steps and self.progress.step % self.run.check_steps == 0:
            self.check_and_keep_best()

    def write_metrics(self) -> None:
        """One line for the steps since the last one."""
        self.metrics.write(
            self.progress.step, self.progress.minutes, self.rate, self.training.batches.epoch,
            self.minutes_left(), devices.peak_memory_bytes(self.training.engine.device),
        )  # fmt: skip

    def minutes_left(self) -> float | None:
        """Until the nearest limit of steps or minutes, at the speed so far; None: no such limit."""
        run, progress = self.run, self.progress
        left = []
        if run.steps:
            left.append(progress.minutes * (run.steps - progress.step) / max(1, progress.step))
        if run.minutes:
            left.append(run.minutes - progress.minutes)
        return max(0.0, min(left)) if left else None

    def _engine_step(self, batches: Sequence[Batch], rate: float) -> engines.StepReport:
        """A step; ConfigError names the settings to lower where memory was not enough."""
        try:
            return self.training.engine.step(batches, rate)
        except (MemoryError, RuntimeError) as error:
            if not devices.is_out_of_memory(error):
                raise
            rows, tokens = max((batch.ids.shape for batch in batches), key=lambda one: one.numel())
            raise ConfigError(
                f"step {self.progress.step + 1}: out of memory on {self.training.engine.device} "
                f"with {rows} rows of {tokens} tokens: lower data.rows or data.row_tokens (and "
                "raise engine.accumulate), or set engine.recompute=true, or "
                "engine.deepspeed=conf/ds_zero2_offload.json"
            ) from error

    def _guard(self, report: engines.StepReport, batches: Sequence[Batch]) -> None:
        """Count gradients that are not finite; give up after `bad_steps` in a row."""
        if engines.is_finite(report.norm):
            self.progress.bad_in_a_row = 0
            return
        self.progress.bad_in_a_row += 1
        keys = [key for batch in batches for row in batch.keys for key in row]
        LOG.warning(
            "step %d left out: gradient norm %s; utterances %s",
            self.progress.step + 1, report.norm, ", ".join(keys[:8]),
        )  # fmt: skip
        if self.progress.bad_in_a_row >= self.run.bad_steps:
            raise DataError(
                f"step {self.progress.step + 1}: {self.progress.bad_in_a_row} gradients in a row "
                "were not finite; lower schedule.rate, or look at the utterances logged above"
            )

    def check(self) -> dict[str, engines.Score]:
        """Scores on the held-out batches, by the first process, logged and kept in the metrics."""
        if not (self.ranks.is_first or self.training.engine.every_process_scores):
            return {}
        if self._held_out is None:
            self._held_out = self.training.held_out()
        if not self._held_out:
            return {}
        with self.average.in_place() if self.average is not None else nullcontext():
            scores = self.training.engine.score(self._held_out)
            asks = self.training.answers if self.ranks.is_first else None
            figures = asks(self.training.engine.model) if asks is not None else {}
        self.tick()
        self.metrics.write_check(self.progress.step, scores, figures)
        self.warnings.check(scores)
        return scores

    def check_and_keep_best(self) -> None:
        """Held-out scores; where they are the best so far, the model too (run.best)."""
        self._checked_at = self.progress.step
        scores = self.check()
        if not self.run.best:
            return
        whole = engines.whole_score(scores)
        loss = whole.loss if whole.tokens else float("inf")
        is_better, *_ = self.ranks.all_reduce_max(
            (float(self.ranks.is_first and loss < self.progress.best),)
        )
        if is_better:
            self.progress.best = loss
            self.export(self.training.output / BEST_FOLDER)
            LOG.info("step %d  best held-out loss so far: %.4f", self.progress.step, loss)

    def export(self, directory: Path) -> None:
        """The model as a directory to load from: the running mean of its weights, if any."""
        averaged = self.average.in_place() if self.average is not None else nullcontext()
        with self.training.engine.whole_model(), averaged:
            if self.ranks.is_first:
                self.training.export(directory)

    def save(self) -> None:
        """A checkpoint that holds everything the next step depends on."""
        self.tick()
        progress = self.progress
        places = self.training.batches.state_dict()
        every_place = self.ranks.gather(torch.tensor([places[key] for key in sorted(places)]))
        every_random = self.ranks.gather(devices.random_state(self.training.engine.device))
        half_done = states.half_done(self.training.output, progress.step)
        if self.ranks.is_first:
            for left in half_done.parent.glob(".step_*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
            half_done.mkdir(parents=True)
            self.training.describe(half_done)
        self.ranks.barrier()
        engine = self.training.engine.save(half_done)
        self.ranks.barrier()
        self._saved_at = time.monotonic()
        if not self.ranks.is_first:
            return
        state = {
            "engine": engine,
            "batches": every_place,
            "random": every_random,
            "average": None if self.average is None else self.average.state_dict(),
            "progress": asdict(replace(progress, epoch=self.training.batches.epoch)),
            "metrics_bytes": self.metrics.size(),
            "visits": self.training.batches.visits,
        }
        path = states.save(
            self.training.output, progress.step, state, self.training.config_text, self.run.keep
        )
        LOG.info("saved %s", path)
        self.tick()
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the output directory, if it holds one."""
        self.training.output.mkdir(parents=True, exist_ok=True)
        checkpoint = states.newest(self.training.output)
        if checkpoint is None:
            self.metrics.cut(0)
            return
        state = states.load(checkpoint, self.training.engine.device)
        place = self.ranks.own(state["batches"]).tolist()
        try:
            self.training.engine.load(state["engine"], checkpoint)
            if self.average is not None and state["average"] is not None:
                self.average.load_state_dict(state["average"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint}: of another model, or of other trained parts ("
                f"{' '.join(str(error).split())[:states.MOST_REASON]}); begin in another output, "
                f"with init={self.training.output / FINAL_FOLDER} to start from what it has learnt"
            ) from error
        if self.average is not None and state["average"] is None:
            self.average = WeightAverage(self.training.engine.model, self.run.average)
        names = sorted(one.name for one in fields(Place))
        self.training.batches.load_state_dict(dict(zip(names, place, strict=True)))
        devices.set_random_state(self.ranks.own(state["random"]), self.training.engine.device)
        self.progress = Progress(**state["progress"])
        self.metrics.cut(state["metrics_bytes"])
        self._clock = self._saved_at = time.monotonic()
        is_raised = self.progress.finished and self.limit_reached() is None
        raised = ", its limits raised since" if is_raised else ""
        self.progress.finished = False
        visits = self.training.batches.visits
        if self.ranks.is_first and state.get("visits", visits) != visits:
            LOG.warning("the lists have changed: an epoch here has %d utterances, not %d; "
                        "what is left of this one is drawn anew", visits, state["visits"])
        LOG.info("going on from %s, step %d%s", checkpoint, self.progress.step, raised)

    def finish(self) -> None:
        """Last scores, the exported model, and a checkpoint that says that all is done."""
        if self.metrics.has_steps:
            self.write_metrics()
        if self._checked_at != self.progress.step:
            self.check_and_keep_best()
        final, reached = self.training.output / FINAL_FOLDER, self.limit_reached()
        self.export(final)
        self.progress.finished = True
        self.save()
        if self.ranks.is_first:
            engines.keep_encoder_cache(self.training.engine.model, self.training.engine.settings)
        LOG.info("finished at step %d (%s): %s", self.progress.step, reached, final)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are noted in the list that is given; a second SIGINT interrupts."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {one: signal.signal(one, note) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
