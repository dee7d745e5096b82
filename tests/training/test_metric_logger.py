"""Claims about early warnings."""

import logging

import pytest

from osum_echat.training.metric_logger import QUIET_STEPS, WARM_STEPS, EarlyWarnings


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("osum_echat").propagate = True
    return caplog


def test_a_spike_is_told_once_in_a_while_and_does_not_become_usual(
    log: pytest.LogCaptureFixture,
) -> None:
    watch = EarlyWarnings()
    assert not any(watch.step(number, 1.0 + number % 2, ["s2s"]) for number in range(WARM_STEPS))
    usual = watch.usual
    assert 1.0 < usual < 2.0
    assert watch.step(WARM_STEPS, 100.0, ["s2s"])
    assert watch.step(WARM_STEPS + 1, 100.0, ["s2s"])
    assert log.text.count("gradient norm 100") == 1
    assert watch.usual == usual
    assert watch.step(WARM_STEPS + QUIET_STEPS, 100.0, ["s2s"])
    assert log.text.count("gradient norm 100") == 2


def test_the_first_steps_are_no_spikes() -> None:
    assert not any(EarlyWarnings().step(1, norm, []) for norm in (0.1, 50.0))


def test_a_scored_task_that_never_trained_is_told_once(log: pytest.LogCaptureFixture) -> None:
    watch = EarlyWarnings()
    assert watch.check(["tts"]) == []  # before the first step nothing has trained
    watch.step(1, 1.0, ["s2s"])
    assert watch.check(["s2s", "tts"]) == ["tts"]
    assert watch.check(["s2s", "tts"]) == []
    assert "task tts: scored, but nothing of it was trained" in log.text
