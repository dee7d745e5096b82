"""Claims about the command: what it tells, what it leaves out, and that --help is instant."""

import subprocess
import sys

import pytest

from osum_echat.evaluation import __main__ as door
from osum_echat.evaluation import start
from osum_echat.evaluation.options import SUITES
from osum_echat.evaluation.start import limited
from tests.evaluation.spoken import Spoken, model, write_queries


@pytest.fixture()
def spoken(monkeypatch):
    monkeypatch.setattr(start, "model_of", lambda arguments: model(Spoken()))


def test_one_command_runs_a_suite_and_prints_its_measures(tmp_path, spoken, capsys):
    data = write_queries(tmp_path / "d")
    assert door.main(["echat_eval", "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "label/all" in printed and printed.strip().endswith("report.html")


def test_all_runs_what_finds_its_data_and_tells_what_does_not(tmp_path, spoken, capsys):
    data = write_queries(tmp_path / "d")
    argv = ["all", "--data", f"echat_eval={data}", "--data", f"tiny_world={tmp_path}",
            "--data", f"latency={data}", "--out", str(tmp_path / "out")]  # fmt: skip
    assert door.main(argv) == 0
    printed = capsys.readouterr().out
    assert "tts: left out, no --data tts=PATH" in printed
    assert "tiny_world: left out: --data" in printed
    assert (tmp_path / "out/latency/report.html").exists()
    assert (tmp_path / "out/echat_eval/report.html").exists()


def test_wrong_data_is_one_line_and_exit_code_2(tmp_path, spoken, capsys):
    argv = ["echat_eval", "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]
    assert door.main(argv) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("evaluation: --data") and "cannot be read" in told


@pytest.mark.parametrize("command", [*SUITES, "all", "human", "gallery"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        door.main([command, "--help"])
    assert ended.value.code == 0 and "--out" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = ("import sys; from osum_echat.evaluation import __main__, options; options.parser();"
            "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_limit_takes_from_every_kind_by_turns():
    items = ["a1", "a2", "a3", "a4", "b1", "b2"]
    assert limited(items, 3, lambda one: one[0]) == ["a1", "a2", "b1"]
    assert limited(items, None, lambda one: one[0]) == limited(items, 9, str) == items
