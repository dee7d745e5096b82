"""Ask the model once and print what comes back: see --help."""

import sys
from collections.abc import Sequence

from osum_echat import cli
from osum_echat.inference import command


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for input that cannot be used, with one line on standard error."""
    return cli.run("infer_runtime.py", lambda: command.run(command.parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
