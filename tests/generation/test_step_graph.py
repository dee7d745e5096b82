"""The graph of one row's steps says what torch says of the same 4-bit weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from osum_echat.generation import step_graph
from osum_echat.generation.kv_cache import CachedLLM
from osum_echat.generation.step_graph import StepGraph
from osum_echat.models import int8
from osum_echat.models.echat import build_llm
from osum_echat.models.lora import Change
from tests.models.test_echat import made_of_four_bits

SIZES = {
    "model_type": "qwen2", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
STEPS = 6


@pytest.fixture(params=[False, True], ids=["plain", "lora"])
def llm(request):
    torch.manual_seed(2)
    made, changes = build_llm(SIZES).eval(), {}
    for name, layer in made.model.layers.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        layer.weight.data = made_of_four_bits(*layer.weight.shape).weight.data
        if layer.bias is not None:
            layer.bias.data.zero_()
        if request.param and name.startswith("1."):
            down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
            change = Change(layer.weight.data.clone(), 0.1 * down, 0.1 * up, 2.0)
            changes[f"llm.model.layers.{name}"] = change
    int8.shrink(SimpleNamespace(llm=made, text_head=None), changes)
    return made


@torch.inference_mode()
def test_the_steps_of_a_row_are_those_of_torch(llm):
    prompt, tokens = torch.randn(5, 64), torch.randn(STEPS, 1, 64)
    assert step_graph.fits(llm)

    def states(growing):
        found = []
        for token in tokens:
            growing.step(token)
            found.append(growing.state)
        return torch.cat(found)

    wanted = states(CachedLLM(llm, [prompt]))
    llm.step_graph = StepGraph(llm)
    growing = CachedLLM(llm, [prompt])
    made = states(growing)
    assert growing.bound is not None
    assert (made - wanted).norm() < 0.02 * wanted.norm()
    growing.step(torch.randn(1, 64))
    beside = CachedLLM(llm, [prompt, prompt[:3]])       # several rows: by torch
    beside.step(tokens[0].expand(2, -1))
    assert beside.bound is None and (beside.state[0] - made[0]).norm() < 0.02 * made[0].norm()


@torch.inference_mode()
def test_a_row_goes_on_in_memory_that_has_moved(llm, monkeypatch):
    from osum_echat.generation import kv_cache

    monkeypatch.setattr(kv_cache, "ROOM_TOKENS", 2)
    prompt, tokens = torch.randn(5, 64), torch.randn(STEPS, 1, 64)
    wanted = CachedLLM(llm, [prompt])
    llm.step_graph = StepGraph(llm)
    growing = CachedLLM(llm, [prompt])
    for token in tokens:
        wanted.graph = None
        wanted.step(token)
        growing.step(token)
    assert (growing.state - wanted.state).norm() < 0.02 * wanted.state.norm()


def test_weights_of_8_bits_do_not_fit():
    made = build_llm(SIZES).eval()
    int8.shrink(SimpleNamespace(llm=made, text_head=None))
    assert not step_graph.fits(made)
