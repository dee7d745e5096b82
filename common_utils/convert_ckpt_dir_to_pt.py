"""One file from a DeepSpeed directory: python common_utils/convert_ckpt_dir_to_pt.py DIR [OUT].

Pieces (ZeRO 3, --fp32) are put together by DeepSpeed's own code, which runs what a file says: give
only directories of your own trainings.
"""

import sys
from pathlib import Path

from common_utils.command import command
from common_utils.convert_checkpoint import zero_weights
from osum_echat import logs
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.convert import collect


def make(
    directory: Path, out: Path | None = None, /, fp32: bool = False, quiet: bool = False
) -> str:
    """Collect; how many keys there are."""
    out = out or directory.with_name(f"{directory.name}.pt")
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give what DeepSpeed saved")
    states = checkpoint.deepspeed_states(directory)
    if states is None:
        raise CheckpointError(f"{directory}: holds no DeepSpeed checkpoint")
    is_piece = states.name != checkpoint.DEEPSPEED_STATES
    has_fp32 = any(states.parent.glob(checkpoint.OPTIMIZER_STATES))
    lines = collect(states, out, zero_weights(states) if is_piece or (fp32 and has_fp32) else None)
    for line in () if quiet else lines:
        logs.out(str(line))
    return f"{out}: {len(lines)} keys"


main = command(
    make, directory="what save_checkpoint wrote: a step's folder, or its parent",
    out="a .pt or .safetensors (default: DIR.pt)", quiet="no line for each key",
    fp32="the optimizer's float32 weights, where ZeRO kept any",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
