"""What tests/test_ray_pool.py lets workers do: little, and quickly loaded."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from osum_echat.errors import InputError


def work(folder: Path) -> Callable[[str], str]:
    """Started once a worker, which the folder tells. Words say what happens to the worker."""
    (folder / f"{os.getpid()}.started").touch()

    def one(word: str) -> str:
        if word == "bad":
            raise InputError("bad word; say another")
        if word == "end" or (word == "end once" and not (folder / "ended").exists()):
            (folder / "ended").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return word.upper()

    return one
