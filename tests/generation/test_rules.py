"""Claims about what may not come next."""

import torch

from osum_echat.generation.rules import SILENCE, AllowedAfter, NoLongRuns, WindowLimit

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
    for rule in (NoLongRuns(), WindowLimit(), AllowedAfter([1], [2])):
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
