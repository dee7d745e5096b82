"""One file from a DeepSpeed directory: python common_utils/convert_ckpt_dir_to_pt.py DIR [OUT]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import OsumError
from osum_echat.models.convert import collect


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = argparse.ArgumentParser(description="Collect the weights that DeepSpeed has saved.")
    add = parser.add_argument
    add("directory", type=Path, help="what save_checkpoint wrote: a step's folder, or its parent")
    add("out", type=Path, nargs="?", help="a .pt or .safetensors (default: DIR.pt)")
    add("--fp32", action="store_true", help="the optimizer's float32 weights, where ZeRO kept any")
    add("--quiet", action="store_true", help="no line for each key")
    arguments = parser.parse_args(argv)
    logs.setup(arguments.quiet)
    out = arguments.out or arguments.directory.with_name(f"{arguments.directory.name}.pt")
    try:
        lines = collect(arguments.directory, out, arguments.fp32)
    except OsumError as error:
        sys.stderr.write(f"convert_ckpt_dir_to_pt.py: {' '.join(str(error).split())}\n")
        return 2
    for line in () if arguments.quiet else lines:
        logs.out(str(line))
    logs.out(f"{out}: {len(lines)} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main())
