"""All rows of a model fixture: hearing, training rows, decoding."""

from pathlib import Path

from osum_echat.parity import decoding, hearing, rehearsal
from osum_echat.parity.fixture import Fixture
from osum_echat.parity.report import Row


def rows(directory: Path) -> list[Row]:
    """Compare with every array of a model fixture. Raises CheckpointError."""
    fixture = Fixture(directory)
    return [*hearing.rows(fixture), *rehearsal.rows(fixture), *decoding.rows(fixture)]
