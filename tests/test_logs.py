"""Claims about output: results to standard output, everything else to standard error."""

import logging

import pytest

from osum_echat import logs


@pytest.fixture(autouse=True)
def fresh(process_as_before):
    """The package's logger as a new process has it."""
    root = logging.getLogger("osum_echat")
    root.handlers[:], root.propagate = [], True


def test_logs_go_to_standard_error_and_results_to_standard_output(capsys):
    for _ in range(2):
        logs.setup()
    logs.logger("osum_echat.audio").info("loaded")
    logs.out("a result")
    shown = capsys.readouterr()
    assert shown.out == "a result\n" and shown.err.count("loaded") == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_quiet_and_later_ranks_only_warn(capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    logs.setup(quiet=rank == "0")
    logs.logger("here").info("hidden")
    logs.logger("here").warning("seen")
    assert "hidden" not in (shown := capsys.readouterr().err) and "seen" in shown
