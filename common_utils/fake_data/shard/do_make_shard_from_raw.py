"""Make the shards of the fake data again: ten utterances in two tars, from the raw list."""

import sys
from pathlib import Path

from common_utils import make_shard_from_raw

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    words = [str(HERE.parent / "raw" / "data.list"), str(HERE), "--per-tar=5", "--overwrite"]
    return make_shard_from_raw.main([*words, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
