"""The velocity estimator of the flow: a 1-d U-Net of residual convolutions and attention.

Its layers take and give (batch, frames, width); valid: (batch, frames), None: no row is padded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osum_echat.token2wav.layers import Conv, ConvUp, GroupNorm, Mish, masked, named

GROUPS = 8
TIME_SCALE = 1000.0
MASKED_SCORE = -1e10


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """Sizes of the U-Net; the defaults are the published ones."""

    channels: tuple[int, ...] = (256, 256)
    heads: int = 8
    head_width: int = 64
    transformers: int = 4
    mid_blocks: int = 12


# Of a prompt's frames in one pass, layer by layer: (batch, heads, frames, width) each.
KeyValues = list[tuple[Tensor, Tensor]]
# The keys and values of a layer's frames to those that are attended to; asked layer by layer.
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def keeping(kept: KeyValues, frames: int, keep: int) -> Extend:
    """Keeps the first `keep` of a pass over `frames` frames, and changes nothing."""

    def extend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        first = keep // round(frames / key.shape[2])        # some layers halve the frames
        kept.append((key[:, :, :first].clone(), value[:, :, :first].clone()))
        return key, value

    return extend


def extending(kept: KeyValues) -> Extend:
    """Puts what was kept before a pass that goes on from there, in each of its rows."""
    layers = iter(kept)

    def extend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        first_key, first_value = next(layers)
        rows = len(key) // len(first_key)
        if rows > 1:
            first_key, first_value = (
                one.repeat_interleave(rows, dim=0) for one in (first_key, first_value)
            )
        return torch.cat((first_key, key), dim=2), torch.cat((first_value, value), dim=2)

    return extend


def time_waves(times: Tensor, width: int) -> Tensor:
    """Sinusoids of the solver time: (batch,) -> (batch, width), sines first."""
    half = width // 2
    pace = torch.exp(torch.arange(half, device=times.device) * -(math.log(10000) / (half - 1)))
    angle = TIME_SCALE * times.float().unsqueeze(1) * pace
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv(inputs, outputs, 3, padding=1), GroupNorm(GROUPS, outputs), Mish()
        )

    def forward(self, x: Tensor, valid: Tensor | None, alone: bool) -> Tensor:
        conv, norm, activation = self.block
        x = norm(conv(masked(x, valid)), valid if alone else None)
        return masked(activation(x), valid)


class Resnet(nn.Module):
    """Two convolution blocks with the time added between, beside a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Mish(), nn.Linear(time_width, outputs))
        self.block1 = ConvBlock(inputs, outputs)
        self.block2 = ConvBlock(outputs, outputs)
        self.res_conv = Conv(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, valid: Tensor | None, alone: bool) -> Tensor:
        hidden = self.block1(x, valid, alone) + self.mlp(time).unsqueeze(1)
        return self.block2(hidden, valid, alone) + self.res_conv(masked(x, valid))


class Attention(nn.Module):
    """Self-attention without positions; in training a plain softmax, faster on a CPU."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor, valid: Tensor | None, extend: Extend | None = None) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.heads, -1)
        query, key, value = (
            part(x).view(shape).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v)
        )
        if extend is not None:
            key, value = extend(key, value)
        bias = None
        if valid is not None:
            bias = (~valid[:, None, None, :]).to(query.dtype) * MASKED_SCORE
        if torch.is_grad_enabled():
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            mixed = (scores if bias is None else scores + bias).softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, settings: EstimatorSettings) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, settings.heads, settings.head_width)
        self.norm3 = nn.LayerNorm(width)
        widen = named(proj=nn.Linear(width, 4 * width), gelu=nn.GELU())
        net = nn.Sequential(widen, nn.Identity(), nn.Linear(4 * width, width))
        self.ff = named(net=net)

    def forward(self, x: Tensor, valid: Tensor | None, extend: Extend | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x), valid, extend)
        return x + self.ff(self.norm3(x))


class Estimator(nn.Module):
    """The U-Net; parameters are named as in the published `flow.pt` below `decoder.estimator.`."""

    def __init__(self, settings: EstimatorSettings, inputs: int, outputs: int) -> None:
        super().__init__()
        channels = settings.channels
        time_width = 4 * channels[0]
        self.inputs = inputs
        self.time_mlp = named(
            linear_1=nn.Linear(inputs, time_width), silu=nn.SiLU(),
            linear_2=nn.Linear(time_width, time_width),
        )  # fmt: skip

        def stage(width_in: int, width: int, last: nn.Module | None = None) -> nn.ModuleList:
            attention = nn.ModuleList(
                Transformer(width, settings) for _ in range(settings.transformers)
            )
            parts = [Resnet(width_in, width, time_width), attention]
            return nn.ModuleList(parts if last is None else [*parts, last])

        def plain(width: int) -> nn.Module:
            return Conv(width, width, 3, padding=1)

        self.down_blocks, self.mid_blocks, self.up_blocks = (nn.ModuleList() for _ in range(3))
        last = len(channels) - 1
        for index, width in enumerate(channels):
            width_in = channels[index - 1] if index else inputs
            end = plain(width) if index == last else named(
                conv=Conv(width, width, 3, stride=2, padding=1)
            )
            self.down_blocks.append(stage(width_in, width, end))
        for _ in range(settings.mid_blocks):
            self.mid_blocks.append(stage(channels[-1], channels[-1]))
        back = (*reversed(channels), channels[0])
        for index, width in enumerate(back[1:]):
            end = plain(width) if index == last else named(
                conv=ConvUp(width, width, 4, stride=2, padding=1)
            )
            self.up_blocks.append(stage(2 * back[index], width, end))
        self.final_block = ConvBlock(channels[0], channels[0])
        self.final_proj = Conv(channels[0], outputs, 1)

    def forward(
        self, x: Tensor, mu: Tensor, times: Tensor, speaker: Tensor, known: Tensor,
        valid: Tensor | None = None, alone: bool = False, extend: Extend | None = None,
    ) -> Tensor:  # fmt: skip
        """The velocity at `x`.

        x, mu, known: (batch, frames, mel); times: (batch,); speaker: (batch, mel); valid: (batch,
        frames), None for all. `known` holds the frames given in advance, zero elsewhere. alone:
        padding changes nothing in a row; else it weighs in the norms, as in published training.
        extend: of each layer's keys and values, where earlier frames go before these.
        Returns (batch, frames, mel).
        """
        frames = x.shape[1]
        time = self.time_mlp(time_waves(times, self.inputs))
        x = torch.cat((x, mu, speaker.unsqueeze(1).expand(-1, frames, -1), known), dim=-1)
        skips: list[Tensor] = []
        masks = [valid]
        for block in self.down_blocks:
            x = self._stage(block, x, time, masks[-1], alone, extend)
            skips.append(x)
            x = cast(nn.ModuleList, block)[2](masked(x, masks[-1]))
            masks.append(None if masks[-1] is None else masks[-1][:, ::2])
        masks = masks[:-1]
        for block in self.mid_blocks:
            x = self._stage(block, x, time, masks[-1], alone, extend)
        for block in self.up_blocks:
            mask, skip = masks.pop(), skips.pop()
            x = torch.cat((x[:, : skip.shape[1]], skip), dim=-1)
            x = self._stage(block, x, time, mask, alone, extend)
            x = cast(nn.ModuleList, block)[2](masked(x, mask))
        x = self.final_block(x, valid, alone)
        return masked(self.final_proj(masked(x, valid)), valid)

    @staticmethod
    def _stage(
        block: nn.Module, x: Tensor, time: Tensor, valid: Tensor | None, alone: bool,
        extend: Extend | None,
    ) -> Tensor:  # fmt: skip
        parts = cast(nn.ModuleList, block)
        x = parts[0](x, time, valid, alone)
        for transformer in cast(nn.ModuleList, parts[1]):
            x = transformer(x, valid, extend)
        return x
