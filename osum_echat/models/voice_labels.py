"""Labels of a voice and of sounds, by what is even over a clip: emotion, age, gender, event.

Pitch, level, rate and melody stand in the log-mel and the first blocks of the encoder; what the CTC
reads, at the end of encoder and adapter, has lost most of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat import thinking, weights
from osum_echat.errors import CheckpointError
from osum_echat.models.encoder import Encoder

LONGEST_FRAMES = 1500           # of a clip, its first 15 s
QUIET, EDGE_FRAMES = 1.0, 5     # of log-mel features below the loudest, 40 dB; kept of 10 ms
BLOCKS = 2                      # of the encoder
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CENTER, SCALE, HIDDEN, BIAS = "center", "scale", "hidden.weight", "hidden.bias"
NO_EVENT = "OTHER"              # what is heard beside words is none of the sounds that have a name


@torch.inference_mode()
def statistics(encoder: Encoder, mel: Tensor) -> Tensor:
    """mel: (frames, mel). Returns (8 * mel + 2 * width,) float32 on the CPU.

    Of each mel: mean, deviation, quantiles, deviation of its changes; mean and deviation of what
    the encoder's first blocks make of the clip. What is quiet before and after it does not count.
    """
    level = mel.amax(1)
    loud = (level > level.max() - QUIET).nonzero()
    mel = mel[max(0, int(loud[0]) - EDGE_FRAMES) : int(loud[-1]) + 1 + EDGE_FRAMES]
    mel = mel[:LONGEST_FRAMES]
    steps = encoder.embed(mel[None].to(encoder.after_norm.weight))
    for block in encoder.encoders[:BLOCKS]:
        steps = block(steps, None)
    levels = mel.quantile(mel.new_tensor(QUANTILES), dim=0)
    changes = mel.diff(dim=0, prepend=mel[:1])
    parts = (mel.mean(0), _deviation(mel), *levels, _deviation(changes),
             steps[0].mean(0), _deviation(steps[0]))  # fmt: skip
    return torch.cat([one.float().cpu() for one in parts])


def _deviation(rows: Tensor) -> Tensor:
    """(rows, width) -> (width,); of one row 0."""
    return rows.std(0, correction=0)


@dataclass(frozen=True, slots=True)
class VoiceLabels:
    """Statistics of a clip -> one hidden layer -> of each kind of label how likely each is.

    center, scale: (statistics,); hidden: (units, statistics); bias: (units,); rows: of each kind
    each label's (units + 1,), the last its bias.
    """

    center: Tensor
    scale: Tensor
    hidden: Tensor
    bias: Tensor
    rows: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def load(cls, path: Path) -> "VoiceLabels":
        """Of a .safetensors file, whose rows are named KIND.LABEL. Raises CheckpointError."""
        found = {name: one.float() for name, one in weights.read(path).items()}
        try:
            center, scale, hidden, bias = (found.pop(one) for one in (CENTER, SCALE, HIDDEN, BIAS))
        except KeyError as error:
            raise CheckpointError(
                f"{path}: no {error.args[0]}; not a file of voice labels"
            ) from error
        units, count = hidden.shape if hidden.dim() == 2 else (0, 0)
        shapes = [tuple(one.shape) for one in (center, scale, bias)]
        rows: dict[str, dict[str, Tensor]] = {}
        for name, row in found.items():
            kind, _, label = name.partition(".")
            known = label in thinking.VALUES.get(kind, ())
            if not known or row.shape != (units + 1,):
                raise CheckpointError(f"{path}: {name} {tuple(row.shape)} is no label's row of "
                                      f"{units + 1} numbers; copy it again")  # fmt: skip
            rows.setdefault(kind, {})[label] = row
        if not rows or shapes != [(count,), (count,), (units,)]:
            raise CheckpointError(f"{path}: its parts do not fit each other; copy it again")
        return cls(center, scale, hidden, bias, rows)

    def surest(self, encoder: Encoder, mel: Tensor) -> dict[str, tuple[str, float]]:
        """Of each kind the likeliest label and its log probability; no event where none has a name.

        mel: (frames, mel).
        """
        rest = (statistics(encoder, mel) - self.center) / self.scale
        units = functional.pad(functional.relu(self.hidden @ rest + self.bias), (0, 1), value=1.0)
        found = {}
        for kind, rows in self.rows.items():
            scores = (torch.stack([*rows.values()]) @ units).log_softmax(0)
            best = int(scores.argmax())
            found[kind] = ([*rows][best], float(scores[best]))
        if found.get("event", ("",))[0] == NO_EVENT:
            del found["event"]
        return found
