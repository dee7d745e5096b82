"""`python -m tests.parity DIR`: one row an array; exit 1 if any falls short, 2 if unreadable."""

import argparse
import sys
from pathlib import Path

from osum_echat import cli, logs
from osum_echat.errors import InputError
from tests.parity.rows import Row, table

KINDS = {"model": ("llm_config.json", "token_ids.json"), "token2wav": ("flow.pt", "hift.pt")}


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


def main(argv: list[str] | None = None) -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("directory", type=Path, help="a model fixture or a token2wav fixture")
    chosen = parser.parse_args(argv)

    def work() -> int:
        rows = compared(chosen.directory)
        logs.out(table(rows))
        return int(any(row.status == "falls short" for row in rows))

    return cli.run("parity", work, quiet=True)


if __name__ == "__main__":
    sys.exit(main())
