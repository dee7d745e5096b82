"""Claims about how work is split: batches, accumulation and processes make the same update."""

import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from osum_echat.device import ALONE, Ranks
from osum_echat.models.echat import EChatModel
from osum_echat.sequence import Batch, collate
from osum_echat.training.deepspeed_engine import DeepSpeedEngine
from osum_echat.training.engine import EngineSettings, LocalEngine
from osum_echat.training.stages import GROUPS, StageSettings
from tests.tiny_network import VOCAB, network, row

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
STAGE = StageSettings(train=tuple(GROUPS))
# Of eight rows, very unequal numbers of trained tokens: a mean of means would be another update.
ROWS = [
    row("t2t", text="a"), row("s2s", 40), row("t2t", text="so it is"), row("tts"),
    row("understand", 33, "ok"), row("t2t", text="b"), row("s2t", 56), row("s2s", 24),
]  # fmt: skip


def batches(size: int) -> list[Batch]:
    """The eight rows, so many a batch."""
    return [collate([[one] for one in ROWS[start : start + size]], VOCAB)
            for start in range(0, 8, size)]  # fmt: skip


def updated(parts: list[Batch], ranks: Ranks = ALONE, **changes: object) -> EChatModel:
    """A network without dropout after two steps on the batches, gradients clipped."""
    model = network()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    # An epsilon of the size of gradients, so that the update follows their size, not their sign.
    settings = EngineSettings(precision="fp32", accumulate=len(parts), clip=0.5, epsilon=1.0,
                              **changes)  # fmt: skip
    kind = LocalEngine if settings.deepspeed is None else DeepSpeedEngine
    engine = kind(model, STAGE, settings, CPU, ranks)
    for _ in range(2):
        assert engine.step(parts, 0.1).applied
    with engine.whole_model() as whole:
        return whole


def moved(model: EChatModel) -> float:
    """How far the weight that moved most is from where it started."""
    start = network().state_dict()
    return max(float((value - start[name]).abs().max())
               for name, value in model.state_dict().items())  # fmt: skip


def differing(one: EChatModel, other: EChatModel) -> list[str]:
    """The weights in which two networks differ by more than rounding."""
    theirs = other.state_dict()
    return [name for name, value in one.state_dict().items()
            if not torch.allclose(value, theirs[name], atol=2e-6, rtol=1e-5)]  # fmt: skip


@pytest.mark.parametrize("size", [4, 2, 1])
def test_accumulated_batches_update_as_one_batch_does(size):
    parts, whole = updated(batches(size)), updated(batches(8))
    assert differing(parts, whole) == [] and moved(whole) > 1e-3


def test_half_of_the_rows_update_otherwise():
    assert differing(updated(batches(4)[:1]), updated(batches(8)))


def process(rank: int, folder: str, deepspeed: str | None) -> None:
    """One of two processes, each with every other half of the rows."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = updated([batches(4)[rank]], Ranks(rank, 2, CPU), deepspeed=deepspeed)
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/weights.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("file", [None, "ds_zero0", "ds_zero1", "ds_zero2"])
def test_two_processes_update_as_one_does(tmp_path, file):
    deepspeed = None if file is None else str(ROOT / "conf" / f"{file}.json")
    multiprocessing.start_processes(
        process, (str(tmp_path), deepspeed), nprocs=2, start_method="spawn"
    )
    both = network()
    both.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert differing(both, updated(batches(8))) == [] and moved(both) > 1e-3


def test_activations_made_again_make_the_same_update():
    plain, model = updated(batches(4)), updated(batches(4), recompute=True)
    assert model.encoder.recompute and model.llm.is_gradient_checkpointing
    assert differing(model, plain) == [] and moved(plain) > 1e-3
