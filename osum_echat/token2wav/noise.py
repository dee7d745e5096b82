"""The random numbers of one call: a frame's noise is the same in whatever pieces it is made."""

from typing import NamedTuple

import torch
from torch import Tensor

from osum_echat.token2wav.voice import MELS

BLOCK_ROWS = 64             # always drawn together, so that pieces cannot change the numbers
LARGEST_SEED = 2**31


class Streams(NamedTuple):
    """Independent generators, all of the CPU, one for each use, so that no use shifts another."""

    prompt: torch.Generator         # what the frames of the prompt start from
    flow: torch.Generator           # what the frames of the speech start from
    source: torch.Generator         # the noise of the vocoder's source, and its phases


def streams(seed: int | None) -> Streams:
    """The generators of a seed; None takes one from torch's global generator."""
    first = None if seed is None else torch.Generator().manual_seed(seed)
    seeds = torch.randint(LARGEST_SEED, (len(Streams._fields),), generator=first).tolist()
    return Streams(*(torch.Generator().manual_seed(each) for each in seeds))


def mel_noise(drawn: Streams, prompt_frames: int, frames: int) -> Tensor:
    """What the mel of a whole utterance is solved from: (mel, prompt frames + frames)."""
    prompt = NoiseRows(MELS, drawn.prompt).take(0, prompt_frames)
    return torch.cat((prompt, NoiseRows(MELS, drawn.flow).take(0, frames))).T


class NoiseRows:
    """Standard normal rows, one a frame, drawn when they are needed and forgotten when passed."""

    def __init__(self, width: int, generator: torch.Generator | None) -> None:
        self.width, self.generator = width, generator
        self.first = 0
        self.rows = torch.empty(0, width)

    def take(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`: (rows, width). What is before `start` is forgotten then."""
        assert start >= self.first, f"row {start} was forgotten: the first one kept is {self.first}"
        missing = stop - self.first - len(self.rows)
        if missing > 0:
            blocks = [
                torch.randn(BLOCK_ROWS, self.width, generator=self.generator)
                for _ in range(-(-missing // BLOCK_ROWS))
            ]
            self.rows = torch.cat((self.rows, *blocks))
        self.rows, self.first = self.rows[start - self.first :], start
        return self.rows[: stop - start]
