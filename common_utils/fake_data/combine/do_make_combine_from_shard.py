"""Make the combine lists of the fake data again, from its shards."""

import sys
from pathlib import Path

from common_utils.make_combine_from_shard import main

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    words = [str(here.parent / "shard/shards_list.txt"), str(here), "--overwrite"]
    sys.exit(main([*words, *sys.argv[1:]]))
