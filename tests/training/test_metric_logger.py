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
    warnings = EarlyWarnings()
    warnings.step(1, 50.0, [])      # the first steps are no spikes
    for number in range(2, WARM_STEPS + 200):
        warnings.step(number, 1.0 + number % 2, ["s2s"])
    usual = warnings.usual
    for number in (500, 501, 500 + QUIET_STEPS):
        warnings.step(number, 100.0, ["s2s"])
    assert warnings.usual == usual and 1.0 < usual < 2.0
    assert log.text.count("gradient norm 100") == 2


def test_a_scored_task_that_never_trained_is_told_once(log: pytest.LogCaptureFixture) -> None:
    warnings = EarlyWarnings()
    warnings.check(["tts"])         # before the first step nothing has trained
    assert not log.text
    warnings.step(1, 1.0, ["s2s"])
    for _ in range(2):
        warnings.check(["s2s", "tts"])
    assert log.text.count("task tts: scored, but nothing of it was trained") == 1
    assert "task s2s" not in log.text
