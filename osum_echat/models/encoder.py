"""The speech encoder: Whisper-shaped, log-mel frames at 100 Hz in, steps at 50 Hz out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from osum_echat.errors import ConfigError
from osum_echat.models.layers import Block, split_sinusoid, valid_mask


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Sizes of the encoder. The defaults are the published ones (Whisper medium)."""

    mels: int = 80
    width: int = 1024
    heads: int = 16
    units: int = 4096
    blocks: int = 24
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"encoder.width {self.width}: must be even, and a multiple of encoder.heads "
                f"{self.heads}"
            )


class Subsampling(nn.Module):
    """Two convolutions, the second halving the rate, then Whisper's positions, unscaled."""

    def __init__(self, mels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Sequential(
            nn.Conv1d(mels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """mels: (clips, frames, mel). Returns (clips, ceil(frames / 2), width).

        lengths: (clips,) in frames, where the second convolution shall see nothing after a clip's
        end, as if the clip were alone; None: it sees what the first one makes of the padding.
        """
        frames = self.conv[:2](mels.transpose(1, 2))
        if lengths is not None:
            places = torch.arange(mels.shape[1], device=mels.device)
            frames = frames.masked_fill((places >= lengths[:, None])[:, None], 0.0)
        steps = self.conv[2:](frames).transpose(1, 2)
        positions = split_sinusoid(steps.shape[1], self.width)
        return self.dropout(steps + positions.to(steps))


class Encoder(nn.Module):
    """Subsampling, transformer blocks, final norm. Parameter names are those of published files."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.recompute = False  # activations of blocks are made again in backward, not kept
        self.embed = Subsampling(settings.mels, settings.width, settings.dropout)
        self.encoders = nn.ModuleList(
            Block(
                settings.width,
                settings.heads,
                settings.units,
                key_bias=False,
                activation="gelu",
                dropout=settings.dropout,
            )
            for _ in range(settings.blocks)
        )
        self.after_norm = nn.LayerNorm(settings.width)

    def forward(self, mels: Tensor, lengths: Tensor, alone: bool = False) -> tuple[Tensor, Tensor]:
        """mels: (clips, frames, mel), right-padded with zeros; lengths: (clips,) in frames.

        Returns (clips, steps, width) and lengths (clips,) in steps. alone: every clip gives what it
        gives without its neighbours. Else as the published model was trained: the mask of the clips
        is sliced from (frames + 1) mod 2 on, so that padded to an even length, a clip of an odd
        number of frames loses its last step (EChatModel.encode_audio avoids that).
        """
        steps = self.embed(mels, lengths if alone else None)
        lengths = (lengths + (alone or mels.shape[1] % 2)) // 2
        valid = valid_mask(lengths, steps.shape[1])
        for block in self.encoders:
            if self.recompute and self.training and torch.is_grad_enabled():
                steps = checkpoint(block, steps, valid, use_reentrant=False)
            else:
                steps = block(steps, valid)
        return self.after_norm(steps), lengths
