"""A directory of published tensors, whatever it holds, compared with this implementation."""

from pathlib import Path

from osum_echat.errors import InputError
from tests.parity.rows import Row

KINDS = {
    "model": ("llm_config.json", "token_ids.json"),
    "token2wav": ("flow.pt", "hift.pt"),
}


def kind_of(directory: Path) -> str:
    """model or token2wav, by the files that are there. Raises InputError."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give one that holds a parity fixture")
    for kind, names in KINDS.items():
        if any((directory / name).is_file() for name in names):
            return kind
    wanted = " nor ".join(f"a {kind} fixture ({', '.join(names)})" for kind, names in KINDS.items())
    raise InputError(f"{directory}: neither {wanted}")


def compared(directory: Path) -> list[Row]:
    """One row for each array. Raises CheckpointError for what cannot be read."""
    if kind_of(directory) == "model":
        from tests.parity.model import rows
    else:
        from tests.parity.token2wav import rows
    return rows(directory)
