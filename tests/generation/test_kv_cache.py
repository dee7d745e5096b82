"""Claims about rows that grow: each step is what the stock model says, whatever stands beside."""

import pytest
import torch

from osum_echat.generation import kv_cache
from osum_echat.generation.kv_cache import CachedLLM, Prefill
from osum_echat.models.echat import build_llm
from osum_echat.models.lora import LoraSettings, add_layers
from tests.tiny_network import LLM

LENGTHS = (7, 1, 4)
STEPS = 9


def llm(kind: str = "qwen2", seed: int = 0, **changes) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = build_llm(LLM | {"model_type": kind, "head_dim": 4} | changes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def rows_of(lengths) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(length + STEPS, 16, generator=generator) for length in lengths]


def whole(model, row: torch.Tensor) -> torch.Tensor:
    """The stock model's states on the whole row at once: (tokens, width)."""
    return model.model(inputs_embeds=row[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("lengths", [(5,), (4, 4), LENGTHS])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@torch.inference_mode()
def test_every_step_says_what_the_stock_model_says(kind: str, lengths, monkeypatch):
    monkeypatch.setattr(kv_cache, "ROOM_TOKENS", 4)  # room is made on the way
    model, rows = llm(kind), rows_of(lengths)
    wanted = [whole(model, row) for row in rows]
    growing = CachedLLM(model, [row[:-STEPS] for row in rows])
    for step in range(STEPS + 1):
        for state, want, length in zip(growing.state, wanted, lengths, strict=True):
            torch.testing.assert_close(state, want[length - 1 + step], atol=2e-5, rtol=1e-4)
        if step < STEPS:
            growing.step(
                torch.stack([row[length + step] for row, length in zip(rows, lengths, strict=True)])
            )


@torch.inference_mode()
def test_rows_that_leave_change_nothing_for_those_that_stay(monkeypatch):
    monkeypatch.setattr(kv_cache, "ROOM_TOKENS", 4)
    model, rows = llm(), rows_of(LENGTHS)
    wanted = whole(model, rows[2])
    growing = CachedLLM(model, [row[:-STEPS] for row in rows])
    for step in range(STEPS):
        if step == 2:
            growing.keep([1, 2])
        if step == 5:
            growing.keep([1])
        live = [row for row in range(3) if step < 2 or (row > 0 and step < 5) or row == 2]
        growing.step(torch.stack([rows[row][LENGTHS[row] + step] for row in live]))
    torch.testing.assert_close(growing.state[0], wanted[-1], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_row_goes_on_after_a_start_that_was_read_before():
    model, (row, other) = llm(), rows_of((7, 6))
    start = Prefill(model, torch.cat((row[:4], other[:2])))     # goes on in another way
    start.advance(6)
    growing = CachedLLM.after(model, row[:-1], start)
    growing.step(row[-1:])
    torch.testing.assert_close(growing.state[0], whole(model, row)[-1], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_lora_layers_take_part():
    model, (row,) = llm(), rows_of((5,))
    add_layers(model, LoraSettings(rank=2, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.add_(0.5)
    model.eval()
    growing = CachedLLM(model, [row[:-1]])
    growing.step(row[-1:])
    torch.testing.assert_close(growing.state[0], whole(model, row)[-1], atol=2e-5, rtol=1e-4)


def test_a_window_of_attention_bounds_the_row():
    model = llm(use_sliding_window=True, sliding_window=32, max_window_layers=1)
    assert kv_cache.longest_row(model.config) == 32
    assert kv_cache.longest_row(llm().config) == LLM["max_position_embeddings"]
