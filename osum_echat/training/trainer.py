"""The training loop: steps, log, held-out scores, checkpoints, and going on after any stop."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import FrameType

import torch

from osum_echat import device as devices
from osum_echat.data import loader as loaders
from osum_echat.data.batching import Place
from osum_echat.data.clips import AugmentSettings
from osum_echat.data.prepare import Preparer
from osum_echat.device import Ranks
from osum_echat.errors import CheckpointError, ConfigError, DataError
from osum_echat.files import locked
from osum_echat.logs import is_first_rank, logger
from osum_echat.sequence import Batch
from osum_echat.training import engine as engines
from osum_echat.training import experiment as experiments
from osum_echat.training import state as states
from osum_echat.training import validation
from osum_echat.training.deepspeed_engine import DeepSpeedEngine
from osum_echat.training.experiment import Experiment, RunSettings
from osum_echat.training.metric_logger import EarlyWarnings, MetricLogger
from osum_echat.training.scheduler import ending, learning_rate
from osum_echat.training.stages import WeightAverage

LOG = logger(__name__)
METRICS_FILE = "metrics.jsonl"
FINAL_FOLDER, BEST_FOLDER = "final", "best"


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
    limits = (("steps", progress.step), ("minutes", progress.minutes), ("epochs", progress.epoch))
    return next((f"run.{name} {getattr(run, name):g}" for name, now in limits
                 if 0 < getattr(run, name) <= now), None)  # fmt: skip


def finished_step(output: Path, run: RunSettings) -> int | None:
    """Where a training ended for good; None: it has not, limits were raised, or `final` is gone."""
    checkpoint = states.newest(output)
    if checkpoint is None or not (output / FINAL_FOLDER).is_dir():
        return None
    progress = Progress(**states.load(checkpoint, torch.device("cpu"), mapped=True)["progress"])
    return progress.step if progress.finished and limit_of(run, progress) else None


def train(experiment: Experiment) -> Outcome:
    """Train as it says until a limit or a signal, going on from what its output holds.

    Raises ConfigError where that was trained with other settings that matter, InputError where
    another training writes there.
    """
    output, run = Path(experiment.output), experiment.run
    with locked(output / states.LOCK_FILE) if is_first_rank() else nullcontext():
        states.tell_changes(output, experiment, experiments.HARMLESS, run.changed, "run.changed")
        step = finished_step(output, run)
        if step is not None:
            end_s, data = (output / FINAL_FOLDER).stat().st_mtime, experiment.data
            read = map(Path, [*(one.path for one in data.lists.values()), *data.manifests.values()])
            if newer := [one for one in read if one.exists() and one.stat().st_mtime > end_s]:
                LOG.warning("%s: written after the training ended, which has not seen what is new; "
                            "raise its limits, or begin in another output",
                            ", ".join(map(str, newer)))  # fmt: skip
            LOG.info("already finished at step %d: see %s", step, output)
            return Outcome(step, None)
        trainer = Trainer(experiment)
        outcome = trainer.train()
        trainer.batches.close()
        trainer.ranks.leave()
        return outcome


class Trainer:
    """One training: what it works on, made as its experiment says, and where it is."""

    def __init__(self, experiment: Experiment) -> None:
        """Raises OsumError for what is wrong with the experiment."""
        run, data, seed = experiment.run, experiment.data, experiment.seed
        self.experiment, self.run, self.output = experiment, run, Path(experiment.output)
        self.schedule = ending(experiment.schedule, run.steps, run.minutes)
        torch.manual_seed(seed)
        settings = experiments.model_settings(experiment)
        self.vocab = experiments.vocabulary(experiment, settings)
        settings = replace(settings, llm={**settings.llm, "vocab_size": self.vocab.text_rows})
        self.preparer = Preparer(experiment.prepare, self.vocab, settings.encoder.mels)
        device = devices.pick(experiment.device)
        self.ranks = ranks = Ranks.join(device)
        self.batches = loaders.Loader(
            loaders.open_sources(data), self.preparer, data, seed, ranks.rank, ranks.world,
            self.output / (f"drops_{ranks.rank}.json" if ranks.rank else "drops.json"),
        )  # fmt: skip
        model = experiments.network(experiment, settings)
        kind = engines.LocalEngine if experiment.engine.deepspeed is None else DeepSpeedEngine
        self.engine = kind(model, experiment.stage, experiment.engine, device, ranks)
        if run.check_answers and self.engine.has_pieces:
            raise ConfigError("run.check_answers: not with ZeRO 3, whose weights are in pieces; "
                              "set 0, or engine.deepspeed=conf/ds_zero2.json")  # fmt: skip
        loaders.open_lists(data.held_out, data.schemes)  # a missing list is told at the start
        self.progress = Progress()
        self.average = WeightAverage(model, run.average) if run.average else None
        self.rate = 0.0
        self.metrics = MetricLogger(
            self.output / METRICS_FILE if ranks.is_first else None, run.tensorboard
        )
        self.warnings = EarlyWarnings()
        self._checked_at = -1
        self._clock = self._saved_at = time.monotonic()

    @cached_property
    def held_out(self) -> list[Batch]:
        """Batches to score, always the same ones."""
        return loaders.held_out_batches(
            self.experiment.data.held_out, self._preparer(), self.experiment.data,
            self.experiment.seed,
        )  # fmt: skip

    @cached_property
    def questions(self) -> list[validation.Question]:
        """Those of `run.check_answers`."""
        data = self.experiment.data
        preparer = self._preparer(labels_only=0.0, audio_as_text=0.0)
        rows = loaders.held_out_rows(data.held_out, preparer, data, self.experiment.seed)
        found = validation.questions(rows, self.vocab, self.run.check_answers)
        if not found:
            LOG.warning("run.check_answers: data.held_out holds no understanding tasks to ask")
        return found

    def _preparer(self, **changes: float) -> Preparer:
        """Of held-out rows, without masks and augmentation."""
        plain = replace(self.experiment.prepare, time_masks=0, band_masks=0,
                        augment=AugmentSettings(), **changes)  # type: ignore[arg-type]  # fmt: skip
        return Preparer(plain, self.vocab, self.engine.model.settings.encoder.mels)

    def train(self) -> Outcome:
        """Until a limit or a signal, going on from the newest checkpoint in the output."""
        torch.set_flush_denormal(True)  # tiny optimizer moments cost a CPU up to half its speed
        self.resume()
        with _signals() as caught:
            while True:
                stopped_by, ended, saves = self.decide(caught)
                if stopped_by or ended:
                    break
                if saves:
                    self.save()
                self.one_step()
        step = self.progress.step
        if not stopped_by:
            self.finish()
            return Outcome(step, None)
        self.save()
        LOG.warning("stopped by signal %d at step %d; run again to go on", stopped_by, step)
        return Outcome(step, stopped_by)

    def tick(self) -> None:
        """Add the time since the last tick to the training's minutes."""
        now = time.monotonic()
        self.progress.minutes += (now - self._clock) / 60.0
        self._clock = now

    def decide(self, caught: Sequence[int]) -> tuple[int, bool, bool]:
        """What all processes do next: the signal that stops them or 0, whether they end, or save.

        By the first process's clock, rate and limits, and any process's signal.
        """
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
        return int(signal_number), bool(ended), bool(saved)

    def limit_reached(self) -> str | None:
        """The limit that is used up, in words."""
        self.progress.epoch = self.batches.epoch
        return limit_of(self.run, self.progress)

    def one_step(self) -> None:
        """Batches, optimizer step, and whatever is due after it."""
        batches = [next(self.batches) for _ in range(self.experiment.engine.accumulate)]
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
            self.progress.step, self.progress.minutes, self.rate, self.batches.epoch,
            self.minutes_left(), devices.peak_memory_bytes(self.engine.device),
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
            return self.engine.step(batches, rate)
        except (MemoryError, RuntimeError) as error:
            if not devices.is_out_of_memory(error):
                raise
            rows, tokens = max((batch.ids.shape for batch in batches), key=lambda one: one.numel())
            raise ConfigError(
                f"step {self.progress.step + 1}: out of memory on {self.engine.device} "
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
        is_first = self.ranks.is_first
        if not (is_first or self.engine.every_process_scores) or not self.held_out:
            return {}
        with self._averaged():
            scores = self.engine.score(self.held_out)
            figures = self.answer() if is_first and self.run.check_answers else {}
        self.tick()
        self.metrics.write_check(self.progress.step, scores, figures)
        self.warnings.check(scores)
        return scores

    def answer(self) -> dict[str, float]:
        """Figures of the held-out questions, which the model answers by generation."""
        said = validation.answered(
            self.engine.model, self.vocab, self.questions, self.run.answer_tokens,
            self.engine.dtype,
        )  # fmt: skip
        return validation.figures(self.questions, said)

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the running mean of its weights, if there is any."""
        return self.average.in_place() if self.average is not None else nullcontext()

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
            self.export(self.output / BEST_FOLDER)
            LOG.info("step %d  best held-out loss so far: %.4f", self.progress.step, loss)

    def export(self, directory: Path) -> None:
        """The model as a directory to load from: the running mean of its weights, if any."""
        with self.engine.whole_model() as model, self._averaged():
            if self.ranks.is_first:
                experiments.export(directory, self.experiment, model, self.preparer.prompts)

    def save(self) -> None:
        """A checkpoint that holds everything the next step depends on."""
        self.tick()
        progress = self.progress
        places = self.batches.state_dict()
        every_place = self.ranks.gather(torch.tensor([places[key] for key in sorted(places)]))
        every_random = self.ranks.gather(devices.random_state(self.engine.device))
        half_done = states.half_done(self.output, progress.step)
        if self.ranks.is_first:
            for left in half_done.parent.glob(".step_*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
            half_done.mkdir(parents=True)
            experiments.describe(half_done, self.experiment, self.engine.model)
        self.ranks.barrier()
        engine = self.engine.save(half_done)
        self.ranks.barrier()
        self._saved_at = time.monotonic()
        if not self.ranks.is_first:
            return
        state = {
            "engine": engine,
            "batches": every_place,
            "random": every_random,
            "average": None if self.average is None else self.average.state_dict(),
            "progress": asdict(replace(progress, epoch=self.batches.epoch)),
            "metrics_bytes": self.metrics.size(),
            "visits": self.batches.visits,
        }
        text = experiments.dump(self.experiment)
        path = states.save(self.output, progress.step, state, text, self.run.keep)
        LOG.info("saved %s", path)
        self.tick()
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the output directory, if it holds one."""
        self.output.mkdir(parents=True, exist_ok=True)
        checkpoint = states.newest(self.output)
        if checkpoint is None:
            self.metrics.cut(0)
            return
        state = states.load(checkpoint, self.engine.device)
        place = self.ranks.own(state["batches"]).tolist()
        try:
            self.engine.load(state["engine"], checkpoint)
            if self.average is not None and state["average"] is not None:
                self.average.load_state_dict(state["average"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint}: of another model, or of other trained parts ("
                f"{' '.join(str(error).split())[:states.MOST_REASON]}); begin in another output, "
                f"with init={self.output / FINAL_FOLDER} to start from what it has learnt"
            ) from error
        if self.average is not None and state["average"] is None:
            self.average = WeightAverage(self.engine.model, self.run.average)
        names = sorted(one.name for one in fields(Place))
        self.batches.load_state_dict(dict(zip(names, place, strict=True)))
        devices.set_random_state(self.ranks.own(state["random"]), self.engine.device)
        self.progress = Progress(**state["progress"])
        self.metrics.cut(state["metrics_bytes"])
        self._clock = self._saved_at = time.monotonic()
        is_raised = self.progress.finished and self.limit_reached() is None
        raised = ", its limits raised since" if is_raised else ""
        self.progress.finished = False
        visits = self.batches.visits
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
        final, reached = self.output / FINAL_FOLDER, self.limit_reached()
        self.export(final)
        self.progress.finished = True
        self.save()
        if self.ranks.is_first:
            engines.keep_encoder_cache(self.engine.model, self.engine.settings)
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
