"""Claims about several processes under one command: how they end is how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osum_echat.training import launch

ROOT = Path(__file__).parents[2]
SLEEPER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    time.sleep(0.2)
    (folder / f"saved{os.environ['RANK']}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
(folder / f"begun{os.environ['RANK']}").touch()
time.sleep(60)
"""


def words(script: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "osum_echat.training.launch", "--standalone",
            "--nproc_per_node=2", str(script), *more]  # fmt: skip


@pytest.mark.parametrize(("code", "said"), [(2, "ended with 2"), (-9, "SIGKILL; the machine's")])
def test_how_a_process_ended_is_told_in_one_line(code: int, said: str, capsys) -> None:
    assert launch._told(1, code) == (code if code > 0 else 137)
    told = capsys.readouterr().err
    assert told.startswith("launch: process 1 ") and said in told and told.count("\n") == 1


@pytest.mark.slow
def test_an_error_of_ours_is_told_without_a_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.stderr.write('train.py: wrong\\n'); sys.exit(2)")
    ended = subprocess.run(words(script), cwd=ROOT, capture_output=True, text=True, timeout=300,
                           check=False)  # fmt: skip
    assert ended.returncode == 2
    assert "train.py: wrong" in ended.stderr and "its own words are above" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_after_sigterm_every_process_may_save(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLEEPER)
    running = subprocess.Popen(words(script, str(tmp_path)), cwd=ROOT, env={**os.environ})
    limit = time.monotonic() + 200
    while len([*tmp_path.glob("begun*")]) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(100) == 143
    assert len([*tmp_path.glob("saved*")]) == 2
