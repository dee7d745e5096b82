"""Claims about what trains: gradients, weights after a step, and rates of groups."""

import re

import pytest
import torch
from torch import nn

from osum_echat.errors import ConfigError
from osum_echat.models.lora import LoraSettings
from osum_echat.sequence import collate
from osum_echat.training.engine import EngineSettings, LocalEngine
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
    moved = {
        group_of(name)
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == set(groups)


def test_a_batch_without_clips_moves_no_adapter():
    engine = LocalEngine(network(), StageSettings(("adapter",)), EngineSettings(), CPU)
    silent = collate([[row("t2t")]], VOCAB)
    assert not engine.step([silent], 0.01).applied
    assert engine.step([silent, BATCH], 0.01).applied


def test_a_group_moves_at_its_own_rate():
    stage = StageSettings(train=("adapter", "llm"), rates={"adapter": 0.0})
    before, after = stepped(stage)
    assert torch.equal(before.adapter.projection.weight, after.adapter.projection.weight)
    layers = [one.llm.model.layers[0].mlp.up_proj.weight for one in (before, after)]
    assert not torch.equal(*layers)


def test_matrices_decay_and_vectors_do_not():
    model = network()
    stage = StageSettings(train=tuple(GROUPS))
    freeze(model, stage)
    groups = optimizer_groups(model, stage, 0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        assert {part.dim() > 1 for part in group["params"]} == {group["weight_decay"] > 0}


def test_of_a_model_with_lora_only_its_matrices_train_in_the_llm():
    model = nn.Module()
    model.llm = nn.Module()
    model.llm.base, model.llm.lora_A = nn.Linear(2, 2), nn.Linear(2, 2)
    freeze(model, StageSettings(train=("llm",)))
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained == ["llm.lora_A.weight", "llm.lora_A.bias"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ()}, "name what trains"),
        ({"train": ("ears",)}, "'ears' is not one of encoder, adapter"),
        ({"train": ("adapter",), "lora": LoraSettings()}, r"stage\.lora: trains within"),
    ],
)
def test_wrong_settings_are_told(changes, message):
    with pytest.raises(ConfigError, match=message):
        StageSettings(**changes)


def test_every_parameter_belongs_to_a_group():
    assert {group_of(name) for name, _ in network().named_parameters()} == set(GROUPS)
    with pytest.raises(ConfigError, match="belongs to no group"):
        group_of("tail.weight")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ctc_only": True}, "engine.ctc_only: needs the weight"),
        ({"share_start": True, "recompute": True}, "engine.share_start: not with engine.recompute"),
        ({"encoder_cache_file": "heard.safetensors"}, "needs the memory engine.encoder_cache_mb"),
    ],
)
def test_settings_that_need_another_name_it(settings, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        EngineSettings(**settings)
