"""Claims about what trains, at what rates, and that work that is split makes the same update."""

import os
from dataclasses import replace

import pytest
import torch
from torch import distributed, multiprocessing, nn

from osum_echat.device import ALONE, Ranks
from osum_echat.errors import ConfigError
from osum_echat.models.echat import EChatModel
from osum_echat.sequence import Batch, collate
from osum_echat.training.engine import EngineSettings, LocalEngine
from osum_echat.training.scheduler import ScheduleSettings, ending, learning_rate
from osum_echat.training.stages import GROUPS, StageSettings, freeze, group_of, optimizer_groups
from tests.tiny_network import VOCAB, network, row

BATCH = collate([[row("s2s"), row("tts")], [row("understand", 33), row("t2t")]], VOCAB)
CPU = torch.device("cpu")


def stepped(stage: StageSettings, rate: float = 0.01) -> tuple[nn.Module, nn.Module]:
    """A network before and after a step of the stage."""
    before, model = network(), network()
    report = LocalEngine(model, stage, EngineSettings(precision="fp32"), CPU).step([BATCH], rate)
    assert report.applied
    return before, model


@pytest.mark.parametrize("groups", [
    ("encoder",), ("llm",), ("adapter", "speech"), ("encoder", "adapter", "llm", "speech"),
])  # fmt: skip
def test_a_step_moves_the_groups_of_the_stage_and_no_others(groups):
    before, after = stepped(StageSettings(groups))
    moved = {group_of(name)
             for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
             if not torch.equal(old, new)}  # fmt: skip
    assert moved == set(groups)


def test_a_batch_without_clips_moves_no_adapter():
    engine = LocalEngine(network(), StageSettings(("adapter",)), EngineSettings(), CPU)
    silent = collate([[row("t2t")]], VOCAB)
    assert not engine.step([silent], 0.01).applied
    assert engine.step([silent, BATCH], 0.01).applied


def test_matrices_decay_and_vectors_do_not_and_each_belongs_to_a_group():
    model = network()
    stage = StageSettings(train=tuple(GROUPS))
    freeze(model, stage)
    groups = optimizer_groups(model, stage, 0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        assert {part.dim() > 1 for part in group["params"]} == {group["weight_decay"] > 0}
    assert {group_of(name) for name, _ in network().named_parameters()} == set(GROUPS)
    with pytest.raises(ConfigError, match="belongs to no group"):
        group_of("tail.weight")


@pytest.mark.parametrize(("settings", "rates"), [
    (ScheduleSettings("warmuplr", rate=1.0, warmup_steps=100), {0: 0.01, 49: 0.5, 99: 1, 399: 0.5}),
    (ScheduleSettings("noam_hold", rate=1.0, warmup_steps=4, hold_steps=6, total_steps=100,
                      min_rate=0.1), {0: 0.2, 4: 1, 9: 1, 10: 1, 22: 0.5, 70: 0.25, 101: 0.1}),
    (ScheduleSettings("cosine", 1.0, warmup_steps=10, total_steps=110, min_rate=0.2),
     {4: 0.5, 10: 1, 60: 0.6, 110: 0.2, 999: 0.2}),
])  # fmt: skip
def test_a_schedule_has_its_shape(settings, rates):
    assert {step: learning_rate(settings, step) for step in rates} == pytest.approx(rates)


def test_a_cosine_follows_the_clock_or_falls_to_the_limit_of_the_training():
    settings = ScheduleSettings("cosine", 1.0, warmup_steps=0, budget_minutes=10.0)
    found = [learning_rate(settings, step, minutes) for step, minutes in ((9, 0), (1, 5), (5, 20))]
    assert found == pytest.approx([1.0, 0.5, 0.0])
    schedule = ScheduleSettings(kind="cosine", rate=1.0, warmup_steps=2)
    assert ending(schedule, 0, 7.0).budget_minutes == 7
    assert ending(schedule, 10, 7.0) == replace(schedule, total_steps=10)
    assert learning_rate(ending(schedule, 10, 0.0), 6) == pytest.approx(0.5)
    assert ending(replace(schedule, total_steps=3), 10, 0.0).total_steps == 3
    with pytest.raises(ConfigError, match="needs an end"):
        ending(schedule, 0, 0.0)


# Batches, accumulation and processes make the same update

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
    engine = LocalEngine(model, STAGE, settings, CPU, ranks)
    for _ in range(2):
        assert engine.step(parts, 0.1).applied
    return model


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


def process(rank: int, folder: str) -> None:
    """One of two processes, each with every other half of the rows."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = updated([batches(4)[rank]], Ranks(rank, 2, CPU))
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/weights.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_update_as_one_does(tmp_path):
    multiprocessing.start_processes(process, (str(tmp_path),), nprocs=2, start_method="spawn")
    both = network()
    both.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert differing(both, updated(batches(8))) == [] and moved(both) > 1e-3


def test_activations_made_again_make_the_same_update():
    plain, model = updated(batches(4)), updated(batches(4), recompute=True)
    assert model.encoder.recompute and model.llm.is_activation_checkpointing
    assert differing(model, plain) == [] and moved(plain) > 1e-3
