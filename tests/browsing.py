"""A real browser for tests of pages: Chromium or Chrome, driven by playwright.

The browser is looked for on PATH or named by CHROMIUM; playwright is in requirements-bench.txt.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from osum_echat.paths import HOUSE

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A browser for the time of a with block; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -r requirements-bench.txt"
    )
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no browser: install chromium (apt install chromium), or name one by CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", *flags]
        )
        yield opened
        opened.close()


@contextmanager
def gradio_door(folder: Path, *options: str) -> Iterator[str]:
    """The address of infer_gradio.py, started on a CPU; its log lies in the folder."""
    log, words = folder / "out", [sys.executable, "infer_gradio.py", "--device", "cpu", *options]
    with log.open("w") as out:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        door = subprocess.Popen(words, stdout=out, cwd=HOUSE, env=environment)
    try:
        limit = time.monotonic() + 300
        while "open http" not in log.read_text():
            assert door.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.5)
        yield log.read_text().split()[1]
    finally:
        door.terminate()
        door.wait(60)
