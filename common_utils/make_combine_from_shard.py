"""Shards to combine lists: python common_utils/make_combine_from_shard.py --help."""

import sys
from collections.abc import Sequence

from osum_echat.corpus import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = options.make_combine_from_shard().parse_args(argv)
    from osum_echat.corpus import combine

    return command.run("make_combine_from_shard.py", combine.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
