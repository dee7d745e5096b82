"""Two processes of train.py on this machine."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(path: Path, *overrides: str) -> list[str]:
    """What starts them."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            str(ROOT / "train.py"), "--config", str(path), *overrides]  # fmt: skip


def environment() -> dict[str, str]:
    """One thread each, on the CPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(path: Path, *overrides: str) -> None:
    """Run them to their end; CalledProcessError where they fail."""
    subprocess.run(command(path, *overrides), check=True, cwd=ROOT, timeout=240,
                   capture_output=True, env=environment())  # fmt: skip
