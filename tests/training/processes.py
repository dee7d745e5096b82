"""Processes on this machine, those of train.py among them: run to their end, or killed before."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600  # on a busy machine; a hang is what it tells


def command(path: Path, *overrides: str, script: str = "train.py", processes: int = 2) -> list[str]:
    """What starts them. script: train.py, or recorded.py with the log as the first override."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    option = ["--config"] if script == "train.py" else []
    return [*start, str(ROOT / script), *option, str(path), *overrides]


def environment(**more: str) -> dict[str, str]:
    """One thread each, on the CPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT), **more}  # fmt: skip


def run(words: list[str], **settings: str) -> None:
    """Run to the end; AssertionError tells what they said where they fail."""
    ended = subprocess.run(words, cwd=ROOT, timeout=TIMEOUT_S, capture_output=True, text=True,
                           env=environment(**settings), check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def kill_when(
    words: list[str], is_time: Callable[[], bool], whole_group: bool = True, **settings: str
) -> bool:
    """Start, and kill -9 at that time; False where they ended before.

    whole_group: with all their children, or else the first process alone; settings: of the
    environment.
    """
    running = subprocess.Popen(
        words, cwd=ROOT, env=environment(**settings), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    limit = time.monotonic() + TIMEOUT_S
    while not is_time() and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    was_running = running.poll() is None
    if was_running:
        (os.killpg if whole_group else os.kill)(running.pid, signal.SIGKILL)
    running.wait()
    return was_running
