"""Layers over (batch, frames, width), and the conformer that encodes tokens for the flow.

Convolutions run as channels-last 2-d ones.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE_STEPS = 30             # a dilated kernel from this width on is faster tap by tap, on a CPU


def plane(x: Tensor) -> Tensor:
    """(batch, frames, width) seen as a channels-last (batch, width, 1, frames), without a copy."""
    return x.transpose(1, 2).unsqueeze(2)


def row(x: Tensor) -> Tensor:
    """The way back from `plane`."""
    return x.squeeze(2).transpose(1, 2)


class Conv(nn.Conv1d):
    """A 1-d convolution over (batch, frames, width).

    Run as a 2-d one in channels-last order, which trains several times faster on a CPU; the
    weights keep the shape of a 1-d convolution, (out, in, kernel).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1,):
            return F.linear(x, self.weight.squeeze(2), self.bias)
        wide = self.dilation[0] > 1 and self.kernel_size[0] * self.dilation[0] > WIDE_STEPS
        if wide and self.stride == (1,) and not torch.is_grad_enabled():
            assert self.bias is not None
            return tap_by_tap(x, self.weight, self.bias, self.dilation[0], int(self.padding[0]))
        step, pad, reach = (1, self.stride[0]), (0, int(self.padding[0])), (1, self.dilation[0])
        weight = self.weight.unsqueeze(2)
        return row(F.conv2d(plane(x), weight, self.bias, step, pad, reach))


def tap_by_tap(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, pad: int) -> Tensor:
    """A convolution of (batch, frames, width) as the sum of one matrix product for each tap.

    weight: (out, in, kernel). Returns (batch, frames, out) for a pad that keeps the frames.
    """
    batch, frames, _ = x.shape
    padded = F.pad(x, (0, 0, pad, pad))
    out = bias.expand(batch, frames, -1).contiguous()
    for tap, matrix in enumerate(weight.permute(2, 1, 0)):
        shifted = padded[:, tap * dilation : tap * dilation + frames]
        out.baddbmm_(shifted, matrix.expand(batch, -1, -1))
    return out


class ConvUp(nn.ConvTranspose1d):
    """A transposed 1-d convolution over (batch, frames, width), run like `Conv`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        step, pad = (1, self.stride[0]), (0, int(self.padding[0]))
        return row(F.conv_transpose2d(plane(x), self.weight.unsqueeze(2), self.bias, step, pad))


class GroupNorm(nn.GroupNorm):
    """Group norm of (batch, frames, width).

    Statistics go over all frames, padded ones too, as published; over those of `alone` (batch,
    frames) only where that is given: each row is then as if it were alone.
    """

    def forward(self, x: Tensor, alone: Tensor | None = None) -> Tensor:
        if alone is None:
            return row(F.group_norm(plane(x), self.num_groups, self.weight, self.bias, self.eps))
        batch, frames, width = x.shape
        groups = x.view(batch, frames, self.num_groups, -1)
        counted = alone.view(batch, frames, 1, 1).to(x.dtype)
        count = counted.sum((1, 3), keepdim=True) * groups.shape[3]
        centred = groups - (groups * counted).sum((1, 3), keepdim=True) / count
        variance = (centred * counted).square().sum((1, 3), keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).view(batch, frames, width)
        return normed * self.weight + self.bias


def within(lengths: Tensor, limit: int) -> Tensor:
    """(batch,) lengths -> (batch, limit), True inside."""
    return torch.arange(limit, device=lengths.device) < lengths.unsqueeze(1)


def padding_of(rows: Sequence[Tensor]) -> Tensor | None:
    """Which places of rows are no padding, once they have one length: (rows, longest) bool; None
    where all are of one length anyway."""
    lengths = [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return None
    return within(torch.tensor(lengths, device=rows[0].device), max(lengths))


def masked(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the frames outside `valid` (batch, frames); None keeps all."""
    return x if valid is None else x * valid.unsqueeze(-1).to(x.dtype)


class Mish(nn.Module):
    """Mish, written out: half the time of the built-in one in training on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


def named(**parts: nn.Module) -> nn.Sequential:
    """Modules one after the other; those with weights under their published names."""
    return nn.Sequential(OrderedDict(parts))


def stretch(x: Tensor, frames: int) -> Tensor:
    """Resize (batch, steps, width) linearly to `frames`, end points not aligned."""
    return F.interpolate(x.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)


@dataclass(frozen=True, slots=True)
class ConformerSettings:
    """Sizes of the encoder; the defaults are the published ones."""

    input_width: int = 512
    width: int = 512
    heads: int = 8
    feed_forward: int = 2048
    blocks: int = 6
    dropout: float = 0.1
    kernel: int = 0  # of a convolution behind each layer's attention; 0: none, as published


def relative_positions(steps: int, width: int) -> Tensor:
    """Sinusoids of the distances steps-1 down to -(steps-1): (2 * steps - 1, width), sin even."""
    distance = torch.arange(steps - 1, -steps, -1, dtype=torch.float32).unsqueeze(1)
    pace = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    table = torch.zeros(2 * steps - 1, width)
    table[:, 0::2] = torch.sin(distance * pace)
    table[:, 1::2] = torch.cos(distance * pace)
    return table


def shift_relative(scores: Tensor) -> Tensor:
    """(batch, heads, steps, 2 * steps - 1) by distance -> (batch, heads, steps, steps) by key."""
    batch, heads, steps, distances = scores.shape
    padded = F.pad(scores, (1, 0)).view(batch, heads, distances + 1, steps)
    return padded[:, :, 1:].reshape(batch, heads, steps, distances)[..., :steps]


class RelativeAttention(nn.Module):
    """Self-attention whose scores add a term for the distance between query and key."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)
        self.dropout = nn.Dropout(dropout)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        """x: (batch, steps, width); positions: (1, 2 * steps - 1, width); valid: (batch, steps)."""
        query = self.linear_q(x).view(x.shape[0], x.shape[1], self.heads, -1)
        key, value = self._split(self.linear_k(x)), self._split(self.linear_v(x))
        place = self._split(self.linear_pos(positions))
        by_content = (query + self.pos_bias_u).transpose(1, 2) @ key.transpose(-2, -1)
        by_distance = (query + self.pos_bias_v).transpose(1, 2) @ place.transpose(-2, -1)
        scores = (by_content + shift_relative(by_distance)) / math.sqrt(query.shape[-1])
        if valid is not None:
            hidden = ~valid[:, None, None, :]
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
        else:
            weights = scores.softmax(-1)
        mixed = self.dropout(weights) @ value
        return self.linear_out(mixed.transpose(1, 2).reshape(x.shape))


class Neighbours(nn.Module):
    """A convolution over neighbouring steps, gated: (batch, steps, width) both."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, 2 * width, kernel, padding=kernel // 2)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        normed = self.norm(x)
        if valid is not None:
            normed = normed * valid.unsqueeze(-1)
        return self.out(F.glu(self.mix(normed.transpose(1, 2)).transpose(1, 2)))


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        width = settings.width
        self.self_attn = RelativeAttention(width, settings.heads, settings.dropout)
        self.feed_forward = named(
            w_1=nn.Linear(width, settings.feed_forward), silu=nn.SiLU(),
            dropout=nn.Dropout(settings.dropout), w_2=nn.Linear(settings.feed_forward, width),
        )  # fmt: skip
        self.norm_mha = nn.LayerNorm(width, eps=1e-12)
        self.norm_ff = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(settings.dropout)
        self.neighbours = Neighbours(width, settings.kernel) if settings.kernel else None

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, valid))
        if self.neighbours is not None:
            x = x + self.dropout(self.neighbours(x, valid))
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


class ScaledInput(nn.Module):
    """Project, norm, and scale by the root of the width."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        self.out = nn.Sequential(
            nn.Linear(settings.input_width, settings.width),
            nn.LayerNorm(settings.width, eps=1e-5),
            nn.Dropout(settings.dropout),
        )
        self.scale = math.sqrt(settings.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


class Conformer(nn.Module):
    """Full attention over all steps; parameter names are those of the published `flow.pt`."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        self.width = settings.width
        self.embed = ScaledInput(settings)
        self.encoders = nn.ModuleList(Layer(settings) for _ in range(settings.blocks))
        self.after_norm = nn.LayerNorm(settings.width, eps=1e-5)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x: (batch, steps, input width); valid: (batch, steps) or None for all.

        Returns (batch, steps, width).
        """
        table = relative_positions(x.shape[1], self.width).to(x.device, x.dtype)
        positions = self.dropout(table.unsqueeze(0))
        x = self.embed(x)
        for layer in self.encoders:
            x = layer(x, positions, valid)
        return self.after_norm(x)
