"""`pytest tests/parity --tensors DIR`: a test for each array of published tensors."""

from pathlib import Path

import pytest

from osum_echat.errors import OsumError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tensors", type=Path, help="a directory of published tensors")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        directory, rows = metafunc.config.getoption("--tensors", default=None), []
        if directory is not None:
            from tests.parity.__main__ import compared

            try:
                rows = compared(directory)
            except OsumError as error:
                raise pytest.UsageError(str(error)) from error
        metafunc.parametrize("row", rows, ids=lambda row: row.name)
