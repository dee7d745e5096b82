"""Claims about what may not come next."""

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.generation.logits_rules import (
    SILENCE,
    AllowedAfter,
    NoLongRuns,
    NoLoops,
    WindowLimit,
)

ROWS = 2000


def blocked(rule, history: list[int]) -> list[int]:
    return torch.nonzero(rule(history, torch.zeros(ROWS)).isinf())[:, 0].tolist()


def test_a_run_at_its_limit_may_not_go_on():
    assert blocked(NoLongRuns(), [3] * 4) == []
    assert blocked(NoLongRuns(), [1, *[3] * 5]) == [3]
    assert blocked(NoLongRuns(), [*[3] * 5, 1]) == []
    assert blocked(NoLongRuns(2, {}), [3, 3]) == [3]


def test_silence_may_run_longer():
    assert blocked(NoLongRuns(), [SILENCE] * 9) == []
    assert blocked(NoLongRuns(), [SILENCE] * 10) == [SILENCE]


def test_an_id_that_fills_its_window_may_not_come_again():
    assert blocked(WindowLimit(), [3, 1, 3, 1, 3, 1, 3]) == []
    assert blocked(WindowLimit(), [3, 1, 3, 1, 3, 3, 1, 3]) == [3]
    assert blocked(WindowLimit(), [3, 3, 3, 3, 3, 1, 1, 1, 2]) == []  # one left the window
    assert blocked(WindowLimit(), [SILENCE] * 9) == []
    assert blocked(WindowLimit(), [SILENCE] * 10) == [SILENCE]


def test_ids_outside_the_head_are_left_alone():
    assert blocked(NoLongRuns(), [ROWS] * 9) == blocked(WindowLimit(), [ROWS] * 9) == []
    assert blocked(WindowLimit(), [*[ROWS] * 6, 1]) == []


def test_no_history_blocks_nothing():
    for rule in (NoLongRuns(), WindowLimit(), NoLoops(), AllowedAfter([1], [2])):
        assert blocked(rule, []) == []


def test_rules_do_not_write_into_the_logits_given():
    logits = torch.zeros(10)
    NoLongRuns()([3] * 5, logits)
    AllowedAfter([3], [1])([3], logits)
    assert not logits.isinf().any()


def test_only_the_allowed_may_follow_the_cue_and_only_once():
    rule = AllowedAfter([5, 6], [8, 9])
    assert blocked(rule, [5, 6, 1]) == []
    left = rule([1, 5, 6], torch.arange(12.0))
    assert left.isfinite().nonzero()[:, 0].tolist() == [8, 9] and left[9] == 9.0
    assert blocked(rule, [1, 5, 6]) == []
    assert blocked(AllowedAfter([], [8]), [1]) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_a_phrase_that_came_three_times_may_not_begin_again(size: int):
    phrase = list(range(10, 10 + size))
    assert blocked(NoLoops(), [1, *phrase * 2]) == []
    assert blocked(NoLoops(), [1, *phrase * 3]) == [10]
    assert blocked(NoLoops(), phrase * 3) == [10]
    assert blocked(NoLoops(), [*phrase * 3, 5]) == []
    assert blocked(NoLoops(4), [1, *phrase * 3]) == []


def test_a_loop_that_is_entered_midway_is_a_loop_too():
    assert blocked(NoLoops(), [2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]) == [1]


def test_a_phrase_over_the_longest_is_no_loop():
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
