"""The best texts of a clip by CTC, and what a language model makes of them."""

from itertools import groupby, product

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from osum_echat.generation.ctc_beam import (
    beam_search,
    llm_scores,
    without,
)


def log_probs(steps: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, classes, generator=generator).log_softmax(-1)


def every_text(scores: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The probability of each text, summed over all paths."""
    blank = scores.shape[1] - 1
    found: dict[tuple[int, ...], float] = {}
    for path in product(range(blank + 1), repeat=len(scores)):
        text = tuple(number for number, _ in groupby(path) if number != blank)
        chance = float(scores[range(len(scores)), path].sum().exp())
        found[text] = found.get(text, 0.0) + chance
    return found


def test_a_wide_beam_finds_the_sum_of_all_paths_of_each_text():
    scores = log_probs(4, 3)
    wanted = every_text(scores)
    found = beam_search(scores, beam=1000, best=1000)
    assert {one.ids for one in found} == set(wanted)
    for one in found:
        assert one.score == pytest.approx(torch.tensor(wanted[one.ids]).log().item(), abs=1e-5)


def test_a_piece_said_twice_needs_a_blank_between():
    sure = torch.full((3, 2), -20.0)
    sure[0, 0] = sure[1, 1] = sure[2, 0] = 0.0
    assert beam_search(sure, best=1)[0].ids == (0, 0)
    sure[1] = torch.tensor([0.0, -20.0])
    assert beam_search(sure, best=1)[0].ids == (0,)


def test_classes_that_count_as_the_blank_keep_the_whole_probability():
    scores = log_probs(5, 6)
    kept = without(scores, [1, 3])
    assert torch.allclose(kept.exp().sum(1), torch.ones(5))
    texts = beam_search(kept, beam=50, best=50)
    assert not {1, 3} & {number for one in texts for number in one.ids}


def test_a_text_scores_the_same_beside_longer_ones():
    torch.manual_seed(0)
    llm = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )).eval()  # fmt: skip
    opening, rows = [1, 2], [[3], [4, 5, 6, 7], [8, 9]]
    together = llm_scores(llm, opening, rows)
    for row, own in zip(rows, together, strict=True):
        assert own == pytest.approx(llm_scores(llm, opening, [row])[0], abs=1e-4)
    logits = llm(torch.tensor([[1, 2, 8, 9]])).logits.log_softmax(-1)[0].detach()
    assert together[2] == pytest.approx([float(logits[1, 8]), float(logits[2, 9])], abs=1e-4)
