"""Claims about reading along: CTC prefix scores, and their part in decoding."""

import pytest
import torch

from osum_echat.generation.ctc_prefix import CtcPrefix, CtcPrefixScorer, leading_labels
from tests.generation.test_ctc_beam import every_text

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


def test_labels_before_the_words_are_skipped():
    assert leading_labels(sure(4, 4, 6, 5, 0, 4), WORDS) == [4, 5]
    assert leading_labels(sure(6, 0, 4), WORDS) == []
    assert leading_labels(sure(6, 6), WORDS) == []


def test_after_the_words_only_labels_are_weighed():
    reads, logits = rule(4, 0, 1), torch.randn(8)
    assert not torch.allclose(reads([], logits)[:4] - logits.log_softmax(-1)[:4], torch.zeros(4))
    for history in ([0, 7], [0, 7, 1]):
        changed = reads(history, logits) - logits.log_softmax(-1)
        assert torch.equal(changed[[0, 1, 2, 3, 6, 7]], torch.zeros(6))
        assert changed[4] == pytest.approx(0.0, abs=1e-3)
        assert changed[5] < -5


def test_an_answer_without_words_is_helped_with_its_labels():
    reads, logits = rule(5, 6, 0, begins=False), torch.zeros(8)
    changed = reads([], logits)
    assert changed[5] > changed[4] + 5
    assert changed[0] == changed[7]


def test_the_first_word_may_be_spelt_with_a_space_before_it():
    spelt = SAME.clone()
    spelt[3] = 0                                         # 3 is 0 with a space
    reads = rule(0, 6, 1, first=spelt)
    scores = reads([], torch.zeros(8))
    assert scores[3] == scores[0]
    assert int(reads([3], torch.zeros(8)).argmax()) == 1
