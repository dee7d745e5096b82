"""What the solver keeps of a voice's own frames, so that speech in it need not solve them again.

Each pass of the estimator turns the prompt's frames into keys and values that those of the speech
attend to. They hardly depend on the speech behind them, so they are made once, of the prompt alone;
only its last frames are solved again, since convolutions reach into them. This is close to solving
the prompt every time, not equal to it: benchmarks/inference_token2wav.py tells the distance.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

AGAIN_FRAMES = 16               # of the prompt's last ones, solved again with what follows them


@dataclass(slots=True)
class Kept:
    """Keys and values of one pass: (batch, heads, frames, width) each, layer by layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Memory:
    """A voice's first frames as each of the solver's steps saw them."""

    frames: int
    steps: tuple[Kept, ...]

    @property
    def size_bytes(self) -> int:
        return sum(key.nbytes + value.nbytes for kept in self.steps for key, value in kept.layers)


class Passing:
    """One pass of the estimator, through the layers in their order."""

    def __init__(self, kept: Kept, frames: int = 0, keep: int = 0) -> None:
        """frames: of a pass whose first `keep` frames are to be kept; none: what is kept is read.
        """
        self.kept, self.frames, self.keep = kept, frames, keep
        self.layer = 0

    def meet(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values: (batch, heads, frames, width). Returns what is attended to."""
        if self.frames:
            keep = self.keep // round(self.frames / key.shape[2])     # some layers halve the frames
            self.kept.layers.append((key[:, :, :keep].clone(), value[:, :, :keep].clone()))
            return key, value
        old_key, old_value = self.kept.layers[self.layer]
        self.layer += 1
        return torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)
