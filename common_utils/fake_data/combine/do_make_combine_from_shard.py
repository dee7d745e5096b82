"""Make the combine lists of the fake data again, from its shards."""

import sys
from pathlib import Path

from common_utils import make_combine_from_shard

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    words = [str(HERE.parent / "shard" / "shards_list.txt"), str(HERE), "--overwrite"]
    return make_combine_from_shard.main([*words, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
