"""Measure a model by one command: see --help."""

import sys
from collections.abc import Sequence

from osum_echat import cli, logs
from osum_echat.evaluation import options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 2 for what the user can put right, told in one line; 130 when stopped."""
    arguments = options.parser().parse_args(argv)
    from osum_echat.evaluation import start

    def evaluate() -> None:
        outcome = start.run(arguments)
        if outcome is not None:
            logs.out(str(outcome))

    return cli.run("evaluation", evaluate)


if __name__ == "__main__":
    sys.exit(main())
