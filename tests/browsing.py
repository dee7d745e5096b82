"""A real browser for tests of pages: Chromium or Chrome, driven by playwright.

The browser is looked for on PATH or named by CHROMIUM; playwright is in requirements-bench.txt.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

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
