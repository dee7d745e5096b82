"""One optimizer step over one batch or several: precision, accumulation, clipping, AdamW."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from osum_echat import device as devices
from osum_echat.device import ALONE, Ranks
from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.logs import logger
from osum_echat.models.attention import chosen
from osum_echat.models.echat import EChatModel, LossReport
from osum_echat.models.loss import Score
from osum_echat.sequence import Batch
from osum_echat.settings import check_numbers, check_word
from osum_echat.training.stages import StageSettings, freeze, optimizer_groups

LOG = logger(__name__)
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """AdamW as published, with clipping of the whole gradient's norm."""

    precision: str = "auto"  # auto | fp32 | bf16; auto: bf16 where the device computes it natively
    accumulate: int = 1  # batches in one step
    clip: float = 5.0  # largest gradient norm; 0 = no clipping
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    ctc_weight: float = 0.0  # of the CTC loss of the adapter's steps; 0 = none (as published)
    ctc_only: bool = False  # train by it alone: the LLM is not run
    encoder_cache_mb: int = 0  # memory for what a frozen encoder made of clips; 0 = hear them anew
    encoder_cache_file: str | None = None  # keeps it for the next stage; or a folder of such files
    encoder_cache_augment: float = 0.0  # how much cached clips are varied at each use, 0 to 1
    deepspeed: str | None = None  # a DeepSpeed file, see conf/ds_*.json; None: without DeepSpeed
    attention: str = "auto"  # auto | mask | eager | segments: see models/attention.py
    speech_noise: float = 0.0  # share of speech codes that are read as random ones in training
    compile: bool = False  # the LLM's layers to machine code when first used, and what runs between
    # them in the precision's type: twice as fast for a small LLM; on a CPU it takes a C++ compiler
    share_start: bool = False  # what all rows of a batch begin with is computed once: for short
    # rows behind long system prompts, bucketed, with data.by_task
    recompute: bool = False  # forget activations and make them again in backward: less memory
    RENAMED: ClassVar[dict[str, str]] = {
        "hearing": "ctc_weight", "hearing_alone": "ctc_only", "remember_mb": "encoder_cache_mb",
        "remember_file": "encoder_cache_file", "remember_vary": "encoder_cache_augment",
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_word("engine.precision", self.precision, ("auto", *PRECISIONS))
        check_numbers(self, "engine", "accumulate", 1)
        check_numbers(self, "engine", "clip epsilon weight_decay ctc_weight encoder_cache_mb", 0)
        if self.ctc_only and not self.ctc_weight:
            raise ConfigError("engine.ctc_only: needs the weight engine.ctc_weight, such as 1.0")
        if self.share_start and self.recompute:
            raise ConfigError("engine.share_start: not with engine.recompute; leave one out")
        if self.encoder_cache_file and not self.encoder_cache_mb:
            raise ConfigError("engine.encoder_cache_file: needs the memory engine.encoder_cache_mb")
        augment = self.encoder_cache_augment
        if not 0 <= augment <= 1 or (augment and not self.encoder_cache_mb):
            raise ConfigError("engine.encoder_cache_augment: 0 to 1, with encoder_cache_mb only")
        for name in ("speech_noise", "beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"engine.{name}: {getattr(self, name)}, need 0 to below 1")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. `applied` is false where the gradient was not finite: nothing moved."""

    norm: float
    applied: bool
    by_task: dict[str, Score]


class LocalEngine:
    """A whole model and optimizer in each process, on one device each: one process or several."""

    every_process_scores = False  # whether `score` needs all processes at once
    has_pieces = False  # whether a process holds no weight whole outside `whole_model`

    def __init__(
        self, model: EChatModel, stage: StageSettings, settings: EngineSettings,
        device: torch.device, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.settings, self.ranks, self.device = settings, ranks, device
        self.dtype = compute_dtype(settings.precision, device)
        freeze(model, stage)
        model.attend_by(chosen(settings.attention, device))
        model.shares_start = settings.share_start
        if settings.recompute:
            model.recompute_activations()
        if settings.compile:
            model.compile_layers(self.dtype)
        model.speech_noise = settings.speech_noise
        self.model = model.to(device)
        if settings.encoder_cache_mb and "encoder" in stage.train:
            raise ConfigError(
                "engine.encoder_cache_mb: needs a frozen encoder; take encoder out of stage.train"
            )
        model.cache_encoder(settings.encoder_cache_mb, settings.encoder_cache_augment)
        if model.encoder_cache is not None and settings.encoder_cache_file:
            file, known = Path(settings.encoder_cache_file), False
            try:
                known = model.encoder_cache.load(file)
            except CheckpointError as error:
                LOG.warning("engine.encoder_cache_file: %s", error)
            LOG.info("encoder cache: %s", file if known else "empty")
        self.optimizer = torch.optim.AdamW(
            optimizer_groups(model, stage, settings.weight_decay),
            betas=(settings.beta_1, settings.beta_2), eps=settings.epsilon,
            fused=True,  # one pass over the weights: 3.6 times faster than foreach on a CPU
        )  # fmt: skip

    def step(self, batches: Sequence[Batch], rate: float) -> StepReport:
        """Gradients of the summed loss are divided by the tokens of all batches and processes."""
        self.model.train()
        scores = summed_scores(self._learned(batch) for batch in batches)
        tokens, gradients = self._summed(sum(score.tokens for score in scores.values()))
        applied, norm = False, 0.0
        if tokens and gradients:
            torch._foreach_mul_(gradients, 1.0 / tokens)
            norm = float(nn.utils.get_total_norm(gradients))
            applied = is_finite(norm)
        if applied:
            if 0 < self.settings.clip < norm:
                torch._foreach_mul_(gradients, self.settings.clip / norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepReport(norm, applied, scores)

    @torch.no_grad()
    def score(self, batches: Sequence[Batch]) -> dict[str, Score]:
        """Loss and accuracy by task, without training."""
        self.model.eval()
        return summed_scores(self._report(batch) for batch in batches)

    def save(self, directory: Path) -> dict[str, Any]:
        """Model and optimizer, for an exact resume; nothing needs a place in the directory."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any], directory: Path) -> None:
        """Take back what `save` gave."""
        self.model.load_state_dict(state["model"])
        with settings_kept(self.optimizer):
            self.optimizer.load_state_dict(state["optimizer"])

    def whole_model(self) -> AbstractContextManager[EChatModel]:
        """The model, which is whole at any time."""
        return nullcontext(self.model)

    def _summed(self, tokens: int) -> tuple[int, list[Tensor]]:
        """Trained tokens and gradients over all processes."""
        parameters = [part for group in self.optimizer.param_groups for part in group["params"]]
        if self.ranks.world > 1:
            for part in parameters:
                if part.grad is None:  # it may have one elsewhere
                    part.grad = torch.zeros_like(part)
        gradients = [part.grad for part in parameters if part.grad is not None]
        count = torch.tensor([float(tokens)], device=self.device)  # exact up to 16 million
        self.ranks.all_reduce_sum([*gradients, count])
        return int(count), gradients

    def _report(self, batch: Batch) -> LossReport:
        settings = self.settings
        with devices.autocast(self.device, self.dtype):
            return self.model.loss(batch.to(self.device), settings.ctc_weight, settings.ctc_only)

    def _learned(self, batch: Batch) -> LossReport:
        """The loss of a batch, its gradient added to those of the step."""
        report = self._report(batch)
        if report.tokens and report.total.requires_grad:  # not where only what is frozen was used
            report.total.backward()
        return report


@contextmanager
def settings_kept(optimizer: Any) -> Iterator[None]:
    """Inside, a state may be loaded; rates, decay and the like stay as they are asked for now."""
    own = [{name: value for name, value in group.items() if name != "params"}
           for group in optimizer.param_groups]  # fmt: skip
    yield
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def keep_encoder_cache(model: EChatModel, settings: EngineSettings) -> None:
    """Write what the encoder made of the clips, where a file is named and can be written."""
    cache, file = model.encoder_cache, settings.encoder_cache_file
    if cache is not None and file and not Path(file).is_dir():
        try:
            cache.save(Path(file))
        except InputError as error:
            LOG.warning("engine.encoder_cache_file: %s; the next stage encodes anew", error)


def is_finite(norm: float) -> bool:
    """Whether a gradient of that norm can be used; DeepSpeed tells -1 for one that cannot."""
    return 0.0 <= norm < float("inf")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, or None for float32.

    A CPU without bf16 instructions takes about four times as long in bf16 as in float32.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type != "cpu":
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else None


def summed_scores(reports: Iterable[LossReport]) -> dict[str, Score]:
    """What the losses of several batches tell of each task, each read before the next is made."""
    scores: dict[str, Score] = {}
    for report in reports:
        for task, score in report.by_task.items():
            scores[task] = scores.get(task, Score()) + score
    return scores


def whole_score(scores: Mapping[str, Score]) -> Score:
    """All tasks together."""
    return sum(scores.values(), Score())
