"""Convert a model: python common_utils/convert_checkpoint.py SRC DST --to ours|upstream|hf."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from osum_echat import cli, logs
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.convert import KINDS, convert
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


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = cli.OneLineParser(
        description="Convert a model, bit for bit, and tell what became of every key. The pieces "
        "of ZeRO 3 are put together by DeepSpeed's own code, which runs what a file says: give "
        "only directories of your own trainings."
    )
    add = parser.add_argument
    add("source", help="a model directory, a published .pt, a DeepSpeed directory, hub:OWNER/NAME")
    add("target", type=Path, help="a new directory; for --to upstream a .pt")
    add("--to", required=True, choices=KINDS, help="ours: safetensors and model.yaml; upstream: a "
        ".pt; hf: the LLM with the speech ids in its vocabulary")  # fmt: skip
    add("--config", metavar="YAML", help="the model's settings (default: beside the weights)")
    add("--quiet", action="store_true", help="no line for each key")
    cli.add_threads(parser)
    arguments = parser.parse_args(argv)

    def work() -> None:
        states = checkpoint.deepspeed_states(Path(arguments.source))
        if states is None or states.name == checkpoint.DEEPSPEED_STATES:
            files, raw = pretrained.find(arguments.source, arguments.config), None
        else:
            config = Path(arguments.config or checkpoint.settings_file(states))
            files, raw = ModelFiles(states, config), zero_weights(states)
        lines = convert(files, arguments.target, arguments.to, raw)
        for line in () if arguments.quiet else lines:
            logs.out(str(line))
        left = sum(not line.became for line in lines)
        logs.out(f"{arguments.target}: {len(lines) - left} keys placed, {left} left out")

    return cli.run("convert_checkpoint.py", work, arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
