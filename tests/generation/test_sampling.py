"""Claims about choosing the next id, and about what may not come next."""

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.generation.sampling import AllowedAfter, EndsAtCue, NoLoops, Sampling


def test_repetition_makes_seen_ids_less_likely_once():
    logits = torch.tensor([2.0, -2.0, 1.0])
    seen = torch.tensor([0, 1])
    changed = Sampling(repetition_penalty=2.0).penalise(seen, logits)
    assert changed.tolist() == [1.0, -4.0, 1.0] and logits.tolist() == [2.0, -2.0, 1.0]
    assert Sampling().penalise(seen, logits) is logits


@pytest.mark.parametrize("wrong", [
    {"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"repetition_penalty": 0},
])  # fmt: skip
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.7), (0, 1e-6), (50, 1.0), (15, 0.8)])
def test_draws_are_those_of_multinomial(top_k: int, top_p: float):
    """So that top-p counts what top-k left, keeps one id at least, and none that is impossible."""
    sampling = Sampling(temperature=1.2, top_k=top_k, top_p=top_p)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    logits[logits.argmax()] = -torch.inf
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    scores, ids = logits.topk(top_k or 50)
    chances = (scores / 1.2).softmax(0)
    chances[chances.cumsum(0) - chances >= top_p] = 0.0
    for _ in range(100):
        drawn = ids[torch.multinomial(chances, 1, generator=theirs)]
        assert sampling.choose(logits, ours) == int(drawn)


def blocked(rule, history: list[int]) -> list[int]:
    return torch.nonzero(rule(history, torch.zeros(50)).isinf())[:, 0].tolist()


def test_only_the_allowed_may_follow_the_cue_and_only_once():
    rule = AllowedAfter([5, 6], [8, 9])
    assert blocked(rule, [5, 6, 1]) == []
    left = rule([1, 5, 6], torch.arange(12.0))
    assert left.isfinite().nonzero()[:, 0].tolist() == [8, 9] and left[9] == 9.0
    assert blocked(rule, [1, 5, 6]) == []
    assert blocked(AllowedAfter([], [8]), [1]) == blocked(AllowedAfter([1], [2]), []) == []
    logits = torch.zeros(10)
    AllowedAfter([3], [1])([3], logits)
    assert not logits.isinf().any()          # what is given is not written into


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_a_phrase_that_came_three_times_may_not_begin_again(size: int):
    phrase = list(range(10, 10 + size))
    assert blocked(NoLoops(), [1, *phrase * 2]) == []
    assert blocked(NoLoops(), [1, *phrase * 3]) == [10]
    assert blocked(NoLoops(), phrase * 3) == [10]
    assert blocked(NoLoops(), [*phrase * 3, 5]) == []
    assert blocked(NoLoops(4), [1, *phrase * 3]) == blocked(NoLoops(), []) == []
    assert blocked(NoLoops(longest=3), [4, 5, 6, 7] * 5) == []


def test_a_guarded_text_never_loops_whatever_is_likely():
    rule, history = NoLoops(), []
    likely = torch.tensor([0.0, 3.0, 2.0, 1.0])
    for _ in range(200):
        history.append(int(rule(history, likely).argmax()))
    for size in range(1, rule.longest + 1):
        for end in range(4 * size, len(history) + 1):
            tail = history[end - 4 * size : end]
            assert tail != tail[:size] * 4


@pytest.mark.parametrize("wrong", [{"times": 1}, {"longest": 0}])
def test_a_guard_that_would_forbid_everything_is_refused(wrong):
    with pytest.raises(ConfigError, match="need 2 or more times"):
        NoLoops(**wrong)


@pytest.mark.parametrize(("history", "likeliest", "ends"), [
    ([9, 9, 4, 1], 2, True),        # behind the thought, the cue
    ([9, 9, 4, 1], 3, False),       # another word
    ([9, 9, 4, 5], 2, False),       # behind another word
    ([9, 4, 4, 1], 2, False),       # within the thought
])  # fmt: skip
def test_a_reply_ends_where_a_label_thought_would_begin_again(history, likeliest, ends):
    logits = torch.zeros(10)
    logits[likeliest] = 1.0
    found = EndsAtCue((1, 2), (9, 9), 0)(history, logits)
    assert found.isfinite().nonzero().flatten().tolist() == ([0] if ends else [*range(10)])
