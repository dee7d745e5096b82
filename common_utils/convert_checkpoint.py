"""Convert a model: python common_utils/convert_checkpoint.py SRC DST --to ours|upstream|hf.

Bit for bit, and it tells what became of every key. The pieces of ZeRO 3 are put together by
DeepSpeed's own code, which runs what a file says: give only directories of your own trainings.
"""

import contextlib
import sys
from pathlib import Path
from typing import Literal

from torch import Tensor

from common_utils.command import command
from osum_echat import logs
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.convert import convert
from osum_echat.models.pretrained import ModelFiles


def zero_weights(states: Path) -> dict[str, Tensor]:
    """The float32 weights in the pieces that DeepSpeed's ZeRO left; states: a file of the step.

    By DeepSpeed's own code, which unpickles: only for directories of one's own.
    Raises CheckpointError.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = states.parent.absolute()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
                str(folder.parent), tag=folder.name
            )
    except (OSError, ValueError, KeyError, IndexError, AssertionError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: not the whole of what ZeRO left ({type(error).__name__}: {error}); copy it "
            "again"
        ) from error
    return found


def make(
    source: str, target: Path, /, to: Literal["ours", "upstream", "hf"], config: Path | None = None,
    quiet: bool = False,
) -> str:  # fmt: skip
    """Convert; how many keys were placed."""
    states = checkpoint.deepspeed_states(Path(source))
    if states is None or states.name == checkpoint.DEEPSPEED_STATES:
        files, raw = pretrained.find(source, config), None
    else:
        files = ModelFiles(states, config or Path(checkpoint.settings_file(states)))
        raw = zero_weights(states)
    lines = convert(files, target, to, raw)
    for line in () if quiet else lines:
        logs.out(str(line))
    left = sum(not line.became for line in lines)
    return f"{target}: {len(lines) - left} keys placed, {left} left out"


main = command(
    make, source="a model directory, a published .pt, a DeepSpeed directory, hub:OWNER/NAME",
    target="a new directory; for --to upstream a .pt",
    to="ours: safetensors and model.yaml; upstream: a .pt; hf: the LLM with the speech ids in its "
    "vocabulary", config="YAML of the model's settings (default: beside the weights)",
    quiet="no line for each key",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
