"""`python -m tests.parity DIR`: one row an array; exit 1 if any falls short, 2 if unreadable."""

import argparse
import sys
from pathlib import Path

from osum_echat import cli, logs
from tests.parity.directory import compared
from tests.parity.rows import table


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
