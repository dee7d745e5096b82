"""Claims about the learning rate: values, shapes, guards."""

from dataclasses import replace

import pytest

from osum_echat.errors import ConfigError
from osum_echat.training.scheduler import ScheduleSettings, ending, learning_rate


def rates(settings: ScheduleSettings, *steps: int) -> list[float]:
    return [learning_rate(settings, step) for step in steps]


def test_warmuplr_is_linear_then_one_over_the_root():
    settings = ScheduleSettings("warmuplr", rate=1.0, warmup_steps=100)
    assert rates(settings, 0, 49, 99, 399) == pytest.approx([0.01, 0.5, 1.0, 0.5])


def test_noam_hold_warms_holds_falls_and_ends():
    settings = ScheduleSettings(
        "noam_hold", rate=1.0, warmup_steps=4, hold_steps=6, total_steps=100, min_rate=0.1
    )
    assert rates(settings, 0, 4, 9, 10) == pytest.approx([0.2, 1.0, 1.0, 1.0])
    assert rates(settings, 22, 70, 101) == pytest.approx([0.5, 0.25, 0.1])


def test_a_cosine_falls_from_the_peak_to_the_floor():
    settings = ScheduleSettings("cosine", 1.0, warmup_steps=10, total_steps=110, min_rate=0.2)
    assert rates(settings, 4, 10, 60, 110, 999) == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2])


def test_a_cosine_can_follow_the_clock():
    settings = ScheduleSettings("cosine", 1.0, warmup_steps=0, budget_minutes=10.0)
    found = [learning_rate(settings, step, minutes) for step, minutes in ((9, 0), (1, 5), (5, 20))]
    assert found == pytest.approx([1.0, 0.5, 0.0])


def test_a_cosine_without_an_end_of_its_own_falls_to_the_limit_of_the_training():
    schedule = ScheduleSettings(kind="cosine", rate=1.0, warmup_steps=2)
    assert ending(schedule, 0, 7.0).budget_minutes == 7
    assert ending(schedule, 10, 7.0) == replace(schedule, total_steps=10)
    assert learning_rate(ending(schedule, 10, 0.0), 6) == pytest.approx(0.5)
    assert ending(replace(schedule, total_steps=3), 10, 0.0).total_steps == 3
    with pytest.raises(ConfigError, match="needs an end"):
        ending(schedule, 0, 0.0)
