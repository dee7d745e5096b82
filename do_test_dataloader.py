"""Look at what a data loader gives: python do_test_dataloader.py [--config YAML] [--stats]."""

import sys
from collections.abc import Sequence

from osum_echat.corpus import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = options.do_test_dataloader().parse_args(argv)
    from osum_echat.corpus import look

    return command.run("do_test_dataloader.py", look.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
