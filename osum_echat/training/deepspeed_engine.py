"""The engine on DeepSpeed: ZeRO 0 to 3, whose pieces of weights and optimizer lie in every process.

The only file that knows DeepSpeed. It is asked to compile nothing: the optimizer is torch's AdamW,
and its own shared-memory exchange between processes of a CPU is switched off.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from osum_echat import device as devices
from osum_echat.device import ALONE, Ranks
from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.models.echat import EChatModel, LossReport
from osum_echat.sequence import IGNORED, Batch
from osum_echat.settings import read_mapping
from osum_echat.training import engine as engines
from osum_echat.training.stages import StageSettings

PIECES_FOLDER = "deepspeed"  # in a checkpoint; readable as any DeepSpeed directory is
PIECES_TAG = "pieces"
OURS = {  # keys of a DeepSpeed file that would contradict a setting of ours
    "train_batch_size": "data.row_tokens and data.rows",
    "train_micro_batch_size_per_gpu": "data.row_tokens and data.rows",
    "gradient_accumulation_steps": "engine.accumulate",
    "gradient_clipping": "engine.clip",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "optimizer": "engine.beta_1, beta_2, epsilon and weight_decay",
    "scheduler": "schedule",
}


class DeepSpeedEngine(engines.LocalEngine):
    """A model and optimizer parted among processes as the DeepSpeed file says."""

    every_process_scores = True  # ZeRO 3 gathers each layer's weights from all

    def __init__(
        self, model: EChatModel, stage: StageSettings, settings: engines.EngineSettings,
        device: torch.device, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        if settings.encoder_cache_mb or settings.ctc_only:
            raise ConfigError("engine.deepspeed: not with encoder_cache_mb or ctc_only; leave out")
        super().__init__(model, stage, settings, device, ranks)
        self._norm: float | None = None  # of the batch that was learned last
        self._loss = _Loss(self.model, settings.ctc_weight)
        self._engine = _start(self._loss, self.optimizer, settings, self.dtype, device)
        self.has_pieces = bool(self._engine.zero_optimization_partition_weights())  # ZeRO 3

    def step(self, batches: Sequence[Batch], rate: float) -> engines.StepReport:
        """Each batch's summed loss is scaled by the trained tokens of all batches and processes.

        DeepSpeed means gradients over processes, so the scale is processes / tokens.
        """
        self.model.train()
        count = sum(_trained(batch, self.settings.ctc_weight) for batch in batches)
        tokens = torch.tensor([float(count)], device=self.device)
        self.ranks.all_reduce_sum([tokens])
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        share = self.ranks.world / max(1.0, float(tokens))
        scores = engines.summed_scores(self._shared(batch, share) for batch in batches)
        norm = self._engine.get_global_grad_norm() if self._norm is None else self._norm
        norm = float(norm or 0.0)
        applied = bool(self._engine.was_step_applied()) and engines.is_finite(norm)
        return engines.StepReport(norm, applied, scores)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write every process's weights and optimizer into the directory; nothing is left over."""
        self._engine.save_checkpoint(str(directory / PIECES_FOLDER), tag=PIECES_TAG)
        return {}

    def load(self, state: dict[str, Any], directory: Path) -> None:
        """Take back what `save` wrote, in as many processes.

        Raises ConfigError for the checkpoint of another engine, CheckpointError for a broken one.
        """
        if state:
            raise ConfigError(
                "engine.deepspeed: the checkpoint was written without DeepSpeed; go on without it, "
                "or begin in another output directory"
            )
        place = directory / PIECES_FOLDER
        try:
            with engines.settings_kept(self._engine.optimizer):
                found, _ = self._engine.load_checkpoint(str(place), tag=PIECES_TAG)
        except (OSError, RuntimeError, AssertionError) as error:
            raise CheckpointError(f"{place}: DeepSpeed cannot read it: {error}") from error
        if found is None:
            raise CheckpointError(
                f"{place}: holds no pieces of DeepSpeed; the run was begun without engine.deepspeed"
            )

    @contextmanager
    def whole_model(self) -> Iterator[EChatModel]:
        """Inside, every process holds all weights (ZeRO 3 keeps a piece of each otherwise)."""
        import deepspeed

        parted = [part for part in self.model.parameters() if hasattr(part, "ds_id")]
        with deepspeed.zero.GatheredParameters(parted, enabled=bool(parted)):
            yield self.model

    def _plain_norm(self) -> float | None:
        """Of ZeRO 0 in float32, which looks at no norm; one that is not finite stops the step.

        None: DeepSpeed does that itself, or the step's last batch is still to come.
        """
        optimizer = self._engine.optimizer
        is_plain = isinstance(optimizer, torch.optim.Optimizer)
        if not is_plain or not self._engine.is_gradient_accumulation_boundary():
            return None
        parts = [part for group in optimizer.param_groups for part in group["params"]]
        gradients = [part.grad for part in parts if part.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if not engines.is_finite(norm):
            torch._foreach_zero_(gradients)
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # nothing moves; only the moments fade by a step
        return norm

    def _report(self, batch: Batch) -> LossReport:
        with devices.autocast(self.device, self.dtype):
            total: Tensor = self._engine(batch.to(self.device))
        return self._loss.report._replace(total=total)  # the one that DeepSpeed has hooked into

    def _shared(self, batch: Batch, share: float) -> LossReport:
        """The loss of a batch, `share` of its gradient added to those of the step."""
        report = self._report(batch)
        self._engine.backward(report.total * share, scale_wrt_gas=False)
        self._norm = self._plain_norm()
        self._engine.step()
        return report


class _Loss(nn.Module):
    """The model's loss as a module's forward, the shape in which DeepSpeed hooks into it."""

    report: LossReport

    def __init__(self, model: EChatModel, ctc_weight: float) -> None:
        super().__init__()
        self.model = model
        self.ctc_weight = ctc_weight

    def forward(self, batch: Batch) -> Tensor:
        self.report = self.model.loss(batch, self.ctc_weight, whole=True)
        return self.report.total


def _start(
    loss: _Loss, optimizer: torch.optim.Optimizer, settings: engines.EngineSettings,
    dtype: torch.dtype | None, device: torch.device,
) -> Any:  # fmt: skip
    """DeepSpeed's own engine around the loss."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")  # torchrun sets it
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, with a compiler
    if not distributed.is_initialized():
        store = distributed.HashStore()
        backend = devices.dist_backend(device)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    exact = {name: one.clone() for name, one in loss.named_buffers() if one.is_floating_point()}
    engine, *_ = deepspeed.initialize(
        model=loss, optimizer=optimizer, config=_config(settings, dtype), dist_init_required=False
    )
    for name, one in exact.items():  # positions must not be rounded to bf16
        place, _, last = name.rpartition(".")
        loss.get_submodule(place)._buffers[last] = one
    model = loss.model
    for part in (model.llm.lm_head.weight, model.speech_embedding.weight,
                 model.speech_head.weight, model.speech_head.bias):  # fmt: skip
        if hasattr(part, "ds_id"):  # read outside their own modules: ZeRO 3 must be told
            deepspeed.zero.register_external_parameter(loss, part)
    return engine


def _config(settings: engines.EngineSettings, dtype: torch.dtype | None) -> dict[str, Any]:
    """The DeepSpeed file with what our own settings decide."""
    path = Path(str(settings.deepspeed))
    raw = read_mapping(path, advice="engine.deepspeed needs a file such as conf/ds_zero2.json")
    for key, own in OURS.items():
        if key in raw:
            raise ConfigError(f"engine.deepspeed: {path}: {key} is decided by {own}; take it out")
    return {
        **raw,
        "train_micro_batch_size_per_gpu": 1,  # a name only: the loader decides
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_clipping": settings.clip,
        "bf16": {"enabled": dtype is torch.bfloat16, "check_grad_overflow": True},
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _trained(batch: Batch, ctc_weight: float) -> int:
    """Tokens that the loss of a batch sums over, known before it is computed."""
    tokens = int((batch.targets[:, 1:] != IGNORED).sum())
    heard = sum(map(len, batch.ctc_targets)) if ctc_weight and batch.mels is not None else 0
    return tokens + heard
