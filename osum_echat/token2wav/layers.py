"""Layers over (batch, frames, width); convolutions run as channels-last 2-d ones."""

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


def masked(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the frames outside `valid` (batch, frames); None keeps all."""
    return x if valid is None else x * valid.unsqueeze(-1).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    """Mish, written out: half the time of the built-in one in training on a CPU."""
    return x * torch.tanh(F.softplus(x))


class Mish(nn.Module):
    """`mish` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return mish(x)


def stretch(x: Tensor, frames: int) -> Tensor:
    """Resize (batch, steps, width) linearly to `frames`, end points not aligned."""
    return F.interpolate(x.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)
