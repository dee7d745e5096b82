"""From log-mel frames to embeddings for the LLM: the speech encoder, then the adapter.

The encoder is Whisper-shaped: frames at 100 Hz in, steps at 50 Hz out. The adapter brings those to
12.5 Hz and to the width of the LLM. Parameter names are those of published files.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from osum_echat.errors import ConfigError

FEW_STEPS = 512  # of attention that trains faster on a CPU without the fused kernel
LONGEST_PERIOD = 10_000.0  # of the sinusoids, as in "Attention is all you need"


def valid_mask(lengths: Tensor, steps: int) -> Tensor | None:
    """Which steps of right-padded clips are real; None when all are: attention then runs unmasked.

    lengths: (clips,). Returns (clips, 1, 1, steps), True on real steps.
    """
    if bool((lengths == steps).all()):
        return None
    return (torch.arange(steps, device=lengths.device) < lengths[:, None])[:, None, None]


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of any length, (length, width), right-padded with zeros, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return pad_sequence(list(rows), batch_first=True), lengths


def split_sinusoid(steps: int, width: int) -> Tensor:
    """Whisper's table: the sines in the first half of the width, the cosines in the second.

    Returns (steps, width), float32.
    """
    rates = torch.exp(-math.log(LONGEST_PERIOD) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(steps)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def interleaved_sinusoid(steps: int, width: int) -> Tensor:
    """The classic table: sines at even places, cosines at odd ones. Returns (steps, width)."""
    rates = torch.exp(torch.arange(0, width, 2) * -(math.log(LONGEST_PERIOD) / width))
    angles = torch.arange(steps)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).reshape(steps, width)


class SelfAttention(nn.Module):
    """Full bidirectional attention over the real steps of a clip."""

    def __init__(self, width: int, heads: int, key_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width, bias=key_bias)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)

    def forward(self, steps: Tensor, valid: Tensor | None) -> Tensor:
        """steps: (clips, steps, width); valid: (clips, 1, 1, steps) or None. Returns like steps."""
        query, key, value = (
            linear(steps).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        attended = attend(query, key, value, valid)
        return self.linear_out(attended.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    """Attention of (clips, heads, steps, head width); valid: (clips, 1, 1, steps) or None.

    valid may also be numbers, added to the scores, where there is no gradient.
    The fused kernel is slow backward on a CPU in bf16: training over few steps does without it.
    """
    is_bf16 = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if not (is_bf16 and query.requires_grad and query.shape[2] <= FEW_STEPS):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=valid)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    if valid is not None:
        scores = scores.masked_fill(~valid, float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value


class Block(nn.Module):
    """One pre-norm transformer block; its parameter names are those of published checkpoints."""

    def __init__(
        self, width: int, heads: int, units: int, key_bias: bool, activation: type[nn.Module],
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.self_attn = SelfAttention(width, heads, key_bias)
        self.feed_forward = nn.Sequential(OrderedDict(
            w_1=nn.Linear(width, units), activation=activation(), dropout=nn.Dropout(dropout),
            w_2=nn.Linear(units, width),
        ))  # fmt: skip
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, valid: Tensor | None) -> Tensor:
        """steps: (clips, steps, width); valid: (clips, 1, 1, steps) or None. Returns like steps."""
        steps = steps + self.dropout(self.self_attn(self.norm1(steps), valid))
        return steps + self.dropout(self.feed_forward(self.norm2(steps)))


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
            Block(settings.width, settings.heads, settings.units, False, nn.GELU, settings.dropout)
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


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Sizes of the adapter's transformer. The defaults are the published ones."""

    heads: int = 4
    units: int = 2560
    blocks: int = 4
    dropout: float = 0.1


class AdapterInput(nn.Module):
    """Linear, norm, then the classic positions on scaled steps."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor) -> Tensor:
        """steps: (clips, steps, width). Returns the same shape."""
        positions = interleaved_sinusoid(steps.shape[1], self.width)
        return self.dropout(self.out(steps) * math.sqrt(self.width) + positions.to(steps))


class AdapterTransformer(nn.Module):
    """The adapter's transformer blocks; unlike the encoder's: ReLU, and a bias on the keys."""

    def __init__(self, settings: AdapterSettings, width: int) -> None:
        super().__init__()
        self.embed = AdapterInput(width, settings.dropout)
        self.encoders = nn.ModuleList(
            Block(width, settings.heads, settings.units, True, nn.ReLU, settings.dropout)
            for _ in range(settings.blocks)
        )
        self.after_norm = nn.LayerNorm(width)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """steps: (clips, steps, width), right-padded; lengths: (clips,). Returns like steps."""
        valid = valid_mask(lengths, steps.shape[1])
        steps = self.embed(steps)
        for block in self.encoders:
            steps = block(steps, valid)
        return self.after_norm(steps)


class Adapter(nn.Module):
    """Convolutions (`convs`), `transformer`, then the `projection` to the width of the LLM.

    The convolutions see no later step; the last two halve the rate each.
    """

    def __init__(self, settings: AdapterSettings, width: int, llm_width: int) -> None:
        super().__init__()
        if width % settings.heads:
            raise ConfigError(f"adapter.heads {settings.heads}: must divide encoder.width {width}")
        self.settings = settings
        layers: list[nn.Module] = []
        for stride in (1, 2, 2):
            conv = nn.Conv1d(width, width, 3, stride=stride)
            layers += [nn.ConstantPad1d((2, 0), 0.0), conv, nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.transformer = AdapterTransformer(settings, width)
        self.projection = nn.Linear(width, llm_width)

    def subsample(self, steps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """steps: (clips, steps, width) at 50 Hz; lengths: (clips,). Returns both at 12.5 Hz."""
        for _ in range(2):
            lengths = (lengths + 1) // 2
        return self.convs(steps.transpose(1, 2)).transpose(1, 2), lengths

    def forward(self, steps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """steps: (clips, steps, width) at 50 Hz, right-padded; lengths: (clips,).

        Returns (clips, steps, llm width) at 12.5 Hz and lengths (clips,).
        """
        steps, lengths = self.subsample(steps, lengths)
        return self.projection(self.transformer(steps, lengths)), lengths
