"""A mel that comes in pieces to a wave without seams: what a vocoder keeps from piece to piece."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from osum_echat.token2wav.noise import NoiseRows
from osum_echat.token2wav.voice import HOP_SAMPLES


@dataclass(frozen=True, slots=True)
class Past:
    """The last frames that were made into sound, and where the source stood after them.

    mel: (1, 80, frames); pitch: (rows, frames), as the vocoder's own; turns: (waves,) in double
    precision, cycles of each wave of the source at the end of these frames.
    """

    mel: Tensor
    pitch: Tensor
    turns: Tensor

    @property
    def frames(self) -> int:
        return self.mel.shape[2]


class Vocoder(Protocol):
    """What both vocoders do. Their random part comes in, their state goes out as a value."""

    @property
    def noise_width(self) -> int:
        """Normal numbers that a frame's source needs."""

    @property
    def reach_frames(self) -> int:
        """Frames on either side that can change a frame's sound."""

    def begin(self, generator: torch.Generator | None = None) -> Past:
        """No frames yet; the source's phases are drawn."""

    def render(self, mel: Tensor, noise: Tensor, past: Past, new: int) -> tuple[Tensor, Past]:
        """Make sound of the past's frames, `new` ones, and provisional ones behind them.

        mel: (1, 80, frames), without the past's; noise: (past and mel frames, noise_width).
        Returns the wave (1, samples) of all these frames, past ones too, and the past after the
        new ones, as long as `reach_frames`.
        """


def whole_wave(vocoder: Vocoder, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A log-mel (1, 80, frames) as sound in one piece: (1, samples)."""
    past, frames = vocoder.begin(generator), mel.shape[2]
    noise = NoiseRows(vocoder.noise_width, generator).take(0, frames)
    return vocoder.render(mel, noise.to(mel.device), past, frames)[0]


class WaveStream:
    """The sound of one mel, piece by piece. A piece's end is blended into the next one's start."""

    def __init__(self, vocoder: Vocoder, generator: torch.Generator, fade_frames: int) -> None:
        self.vocoder = vocoder
        self.past = vocoder.begin(generator)
        self.noise = NoiseRows(vocoder.noise_width, generator)
        self.fade_frames = fade_frames
        self.done_frames = 0
        self.tail: Tensor | None = None

    def push(self, mel: Tensor, new: int) -> Tensor:
        """mel: (1, 80, frames), of which the first `new` are final and the others only a guess of
        what follows. Returns the sound of the new ones, (samples,)."""
        mel = mel[:, :, : new + self.vocoder.reach_frames]
        begun = self.past.frames
        first = self.done_frames - begun
        noise = self.noise.take(first, first + begun + mel.shape[2]).to(mel.device)
        wave, self.past = self.vocoder.render(mel, noise, self.past, new)
        self.done_frames += new
        made = wave[0, begun * HOP_SAMPLES :]
        if self.tail is not None:
            made = blended(self.tail, made, 0)
        end = new * HOP_SAMPLES
        self.tail = made[end : end + self.fade_frames * HOP_SAMPLES]
        return made[:end]


def blended(old: Tensor, new: Tensor, axis: int) -> Tensor:
    """`new`, its start faded over from `old`, which describes the same stretch along `axis`."""
    length = min(old.shape[axis], new.shape[axis])
    shape = [length if each == axis else 1 for each in range(new.dim())]
    share = ((torch.arange(length, device=new.device) + 0.5) / max(1, length)).view(shape)
    start = torch.lerp(old.narrow(axis, 0, length), new.narrow(axis, 0, length), share.to(new))
    return torch.cat((start, new.narrow(axis, length, new.shape[axis] - length)), axis)
