"""Convert a model: python common_utils/convert_checkpoint.py SRC DST --to ours|upstream|hf."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import OsumError
from osum_echat.models.convert import KINDS, convert


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = argparse.ArgumentParser(
        description="Convert a model, bit for bit, and tell what became of every key."
    )
    add = parser.add_argument
    add("source", help="a model directory, a published .pt, a DeepSpeed directory, hub:OWNER/NAME")
    add("target", type=Path, help="a new directory; for --to upstream a .pt")
    add("--to", required=True, choices=KINDS, help="ours: safetensors and model.yaml; upstream: a "
        ".pt; hf: the LLM with the speech ids in its vocabulary")  # fmt: skip
    add("--config", metavar="YAML", help="the model's settings (default: beside the weights)")
    add("--quiet", action="store_true", help="no line for each key")
    arguments = parser.parse_args(argv)
    logs.setup(arguments.quiet)
    try:
        lines = convert(arguments.source, arguments.target, arguments.to, arguments.config)
    except OsumError as error:
        sys.stderr.write(f"convert_checkpoint.py: {' '.join(str(error).split())}\n")
        return 2
    for line in () if arguments.quiet else lines:
        logs.out(str(line))
    left = sum(not line.became for line in lines)
    logs.out(f"{arguments.target}: {len(lines) - left} keys placed, {left} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
