"""All rows of a model fixture: hearing, training rows, decoding."""

from pathlib import Path

from tests.parity import decoding, hearing, rehearsal
from tests.parity.fixture import Fixture
from tests.parity.rows import Row


def rows(directory: Path) -> list[Row]:
    """Compare with every array of a model fixture. Raises CheckpointError."""
    fixture = Fixture(directory)
    return [*hearing.rows(fixture), *rehearsal.rows(fixture), *decoding.rows(fixture)]
