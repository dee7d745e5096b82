"""Raw jsonl lists to shards: python common_utils/make_shard_from_raw.py --help."""

import sys
from collections.abc import Sequence

from osum_echat.corpus import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = options.make_shard_from_raw().parse_args(argv)
    from osum_echat.corpus import shards

    return command.run("make_shard_from_raw.py", shards.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
