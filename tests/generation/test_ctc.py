"""Claims about CTC while decoding: prefix scores that read along, and the best texts of a clip."""

import math
from functools import reduce
from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from osum_echat.errors import CheckpointError
from osum_echat.generation import ctc_beam
from osum_echat.generation.ctc_beam import LETTER, Bigrams, WordScorer, beam_search, llm_scores
from osum_echat.generation.ctc_prefix import CtcPrefix, CtcPrefixScorer
from osum_echat.weights import write_safetensors_file

IDS, STEPS = 3, 5


@pytest.mark.parametrize("said", [(), (0,), (1, 1), (2, 0), (0, 1, 0)])
def test_the_next_id_is_as_likely_as_all_paths_say(said):
    torch.manual_seed(0)
    log_probs = torch.randn(STEPS, IDS + 1, dtype=torch.float64).log_softmax(-1)
    readings = every_text(log_probs)
    begun = {reading: chance for reading, chance in readings.items()
             if reading[: len(said)] == said}
    prefix = CtcPrefix(log_probs)
    for number in said:
        prefix.advance(number)
    follows, ends = prefix.next()
    whole = sum(begun.values())
    for number in range(IDS):
        expected = sum(chance for reading, chance in begun.items()
                       if reading[len(said) : len(said) + 1] == (number,)) / whole
        assert float(follows[number].exp()) == pytest.approx(expected, rel=1e-6)
    assert float(ends.exp()) == pytest.approx(begun.get(said, 0.0) / whole, rel=1e-6)


def sure(*path: int, ids: int = 6):
    """Steps that say this path, nearly surely."""
    log_probs = torch.full((len(path), ids + 1), -12.0)
    log_probs[torch.arange(len(path)), torch.tensor(path)] = 0.0
    return log_probs.log_softmax(-1)


WORDS = torch.tensor([True, True, True, True, False, False])     # 4, 5: labels
LABELS = ~WORDS
SAME = torch.arange(6)


def rule(*path: int, weight: float = 1.0, first=SAME, begins: bool = True):
    return CtcPrefixScorer(sure(*path), WORDS, first, LABELS, begins, weight)


def test_a_doubtful_writer_writes_what_the_steps_say():
    reads, history = rule(4, 6, 0, 6, 2, 2, 6, 1), []
    for _ in range(3):
        history.append(int(reads(history, torch.zeros(8)).argmax()))
    assert history == [0, 2, 1]
    after = reads(history, torch.zeros(8))
    assert int(after.argmax()) >= 4                      # nothing is left but an end


def test_after_the_words_only_labels_are_weighed_and_without_words_from_the_start():
    reads, logits = rule(4, 0, 1), torch.randn(8)
    assert not torch.allclose(reads([], logits)[:4] - logits.log_softmax(-1)[:4], torch.zeros(4))
    for history in ([0, 7], [0, 7, 1]):
        changed = reads(history, logits) - logits.log_softmax(-1)
        assert torch.equal(changed[[0, 1, 2, 3, 6, 7]], torch.zeros(6))
        assert changed[4] == pytest.approx(0.0, abs=1e-3) and changed[5] < -5
    changed = rule(5, 6, 0, begins=False)([], torch.zeros(8))
    assert changed[5] > changed[4] + 5 and changed[0] == changed[7]


# The best texts of a clip, and what a language model makes of them

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


PIECES = (" c", " h", "at")
BIGRAMS = {
    "words": torch.tensor([*b"cat\nhat"], dtype=torch.uint8),
    "alone": torch.tensor([0.75, 0.25]).log(),
    "backoff": torch.tensor([0.8, 1.0, 0.5]).log(),         # after cat, hat, at the beginning
    "starts": torch.tensor([0, 1, 1, 1], dtype=torch.int32),
    "followers": torch.tensor([1], dtype=torch.int32),      # cat hat
    "pairs": torch.tensor([0.4]).log(),
}  # fmt: skip


def bigrams(folder: Path, **other: torch.Tensor) -> Bigrams:
    write_safetensors_file(folder / "lm.safetensors", BIGRAMS | other)
    return Bigrams.load(folder / "lm.safetensors")


def spelt(scorer: WordScorer, ids: tuple[int, ...]) -> ctc_beam.Spelt:
    return reduce(scorer.extended, ids, scorer.empty)


def test_bigrams_turn_the_beam_to_the_likelier_words(tmp_path):
    steps = torch.tensor([[0.3, 0.6, 0.05, 0.05], [0.01, 0.01, 0.97, 0.01]]).log()
    assert beam_search(steps)[0].ids == (1, 2)
    known = bigrams(tmp_path)
    best = beam_search(steps, scorer=WordScorer(known, PIECES, 1.0, 0.0))[0]
    assert best.ids == (0, 2)           # 0.3 * 0.5 * 0.75 against 0.6 * 0.5 * 0.25
    assert best.score == pytest.approx(math.log(0.3 * 0.97))
    scorer = WordScorer(known, PIECES, 2.0, 3.0)
    text = spelt(scorer, (0, 2, 1))
    assert text.score == pytest.approx(2 * math.log(0.5 * 0.75) + 3 + 2 * math.log(0.25) + 3)
    assert scorer.ended(spelt(scorer, (0, 2, 1, 2))) == pytest.approx(
        2 * math.log(0.5 * 0.75) + 2 * math.log(0.4) + 6
    )
    unknown = spelt(scorer, (0, 2, 2, 1, 2))        # catat hat
    assert scorer.ended(unknown) == pytest.approx(
        2 * (ctc_beam.UNKNOWN + 5 * LETTER) + 2 * math.log(0.25) + 6
    )


@pytest.mark.parametrize("other", [
    {"alone": torch.zeros(3)}, {"followers": torch.tensor([2], dtype=torch.int32)},
    {"starts": torch.tensor([0, 2, 1, 1], dtype=torch.int32)}, {"more": torch.zeros(1)},
    {"words": torch.tensor([*b"hat\ncat"], dtype=torch.uint8)},
    {"words": torch.tensor([255], dtype=torch.uint8)},
])  # fmt: skip
def test_bigrams_that_are_broken_are_refused(tmp_path, other):
    with pytest.raises(CheckpointError, match=r"lm\.safetensors: "):
        bigrams(tmp_path, **other)
