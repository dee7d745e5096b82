"""What encoder and adapter share: attention, feed-forward, block, position tables, clip masks."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
LONGEST_PERIOD = 10_000.0  # of the sinusoids, as in "Attention is all you need"


def valid_mask(lengths: Tensor, steps: int) -> Tensor | None:
    """Which steps of right-padded clips are real; None when all are: attention then runs unmasked.

    lengths: (clips,). Returns (clips, 1, 1, steps), True on real steps.
    """
    if bool((lengths == steps).all()):
        return None
    return (torch.arange(steps, device=lengths.device) < lengths[:, None])[:, None, None]


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
        heard = functional.scaled_dot_product_attention(query, key, value, attn_mask=valid)
        return self.linear_out(heard.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with an activation between: (clips, steps, width) in and out."""

    def __init__(self, width: int, units: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, units)
        self.w_2 = nn.Linear(units, width)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor) -> Tensor:
        return self.w_2(self.dropout(self.activation(self.w_1(steps))))


class Block(nn.Module):
    """One pre-norm transformer block; its parameter names are those of published checkpoints."""

    def __init__(
        self,
        width: int,
        heads: int,
        units: int,
        *,
        key_bias: bool,
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads, key_bias)
        self.feed_forward = FeedForward(width, units, activation, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, valid: Tensor | None) -> Tensor:
        """steps: (clips, steps, width); valid: (clips, 1, 1, steps) or None. Returns like steps."""
        steps = steps + self.dropout(self.self_attn(self.norm1(steps), valid))
        return steps + self.dropout(self.feed_forward(self.norm2(steps)))
