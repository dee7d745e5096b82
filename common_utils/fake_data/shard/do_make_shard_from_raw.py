"""Make the shards of the fake data again: ten utterances in two tars, from the raw list."""

import sys
from pathlib import Path

from common_utils.make_shard_from_raw import main

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    words = [str(here.parent / "raw/data.list"), str(here), "--per-tar=5", "--overwrite"]
    sys.exit(main([*words, *sys.argv[1:]]))
