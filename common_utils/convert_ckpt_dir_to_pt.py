"""One file from a DeepSpeed directory: python common_utils/convert_ckpt_dir_to_pt.py DIR [OUT]."""

import sys
from collections.abc import Sequence
from pathlib import Path

from common_utils.convert_checkpoint import zero_weights
from osum_echat import cli, logs
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.convert import collect


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = cli.OneLineParser(
        description="Collect the weights that DeepSpeed has saved. Pieces (ZeRO 3, --fp32) are put "
        "together by DeepSpeed's own code, which runs what a file says: give only directories of "
        "your own trainings."
    )
    add = parser.add_argument
    add("directory", type=Path, help="what save_checkpoint wrote: a step's folder, or its parent")
    add("out", type=Path, nargs="?", help="a .pt or .safetensors (default: DIR.pt)")
    add("--fp32", action="store_true", help="the optimizer's float32 weights, where ZeRO kept any")
    add("--quiet", action="store_true", help="no line for each key")
    cli.add_threads(parser)
    arguments = parser.parse_args(argv)
    directory: Path = arguments.directory
    out = arguments.out or directory.with_name(f"{directory.name}.pt")

    def work() -> None:
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; give what DeepSpeed saved")
        states = checkpoint.deepspeed_states(directory)
        if states is None:
            raise CheckpointError(f"{directory}: holds no DeepSpeed checkpoint")
        is_piece = states.name != checkpoint.DEEPSPEED_STATES
        has_fp32 = any(states.parent.glob(checkpoint.OPTIMIZER_STATES))
        raw = zero_weights(states) if is_piece or (arguments.fp32 and has_fp32) else None
        lines = collect(states, out, raw)
        for line in () if arguments.quiet else lines:
            logs.out(str(line))
        logs.out(f"{out}: {len(lines)} keys")

    return cli.run("convert_ckpt_dir_to_pt.py", work, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
