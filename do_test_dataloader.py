"""Look at what a data loader gives: python do_test_dataloader.py [--config YAML] [--stats]."""

import sys
from collections.abc import Sequence

from osum_echat import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    from common_utils import command, inspect_data

    given = command.parser_of(inspect_data.look, inspect_data.OPTIONS).parse_args(argv)
    return cli.run("do_test_dataloader.py", lambda: command.called(inspect_data.look, given))


if __name__ == "__main__":
    sys.exit(main())
