"""Make the combine lists of the fake data again, from its shards."""

import sys
from pathlib import Path

from osum_echat.corpus import combine, command, options

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    words = [str(HERE.parent / "shard" / "shards_list.txt"), str(HERE), "--overwrite"]
    arguments = options.make_combine_from_shard().parse_args([*words, *sys.argv[1:]])
    return command.run(Path(__file__).name, combine.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
