"""The flow's estimator written plainly, to be timed beside ours on the same weights.

Facts of how the published code computes it: channels first, convolutions in one dimension, every
frame multiplied by a mask though all are valid, a transpose into and out of the transformers, and
attention with a mask of zeros added to its scores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.token2wav.estimator import Estimator, time_waves
from osum_echat.token2wav.layers import Conv, ConvUp


def velocity(
    model: Estimator, x: Tensor, mu: Tensor, times: Tensor, speaker: Tensor, known: Tensor
) -> Tensor:
    """What `model` gives. x, mu, known: (batch, frames, mel); times: (batch,); speaker: (batch,
    mel). Returns (batch, frames, mel)."""
    net: Any = model
    frames = x.shape[1]
    time = net.time_mlp(time_waves(times, net.inputs))
    spread = speaker.unsqueeze(2).expand(-1, -1, frames)
    x = torch.cat((x.mT, mu.mT, spread, known.mT), dim=1)
    masks, skips = [x.new_ones(len(x), 1, frames)], []
    for block in net.down_blocks:
        x = _stage(block, x, time, masks[-1])
        skips.append(x)
        x = _conv(block[2], x * masks[-1])
        masks.append(masks[-1][:, :, ::2])
    masks.pop()
    for block in net.mid_blocks:
        x = _stage(block, x, time, masks[-1])
    for block in net.up_blocks:
        mask, skip = masks.pop(), skips.pop()
        x = torch.cat((x[:, :, : skip.shape[2]], skip), dim=1)
        x = _conv(block[2], _stage(block, x, time, mask) * mask)
    mask = x.new_ones(len(x), 1, frames)
    x = _convolved(net.final_block, x, mask)
    return (_conv(net.final_proj, x * mask) * mask).mT


def _stage(block: Any, x: Tensor, time: Tensor, mask: Tensor) -> Tensor:
    """A residual block, its transformers. x: (batch, width, frames); mask: (batch, 1, frames)."""
    resnet, transformers = block[0], block[1]
    hidden = _convolved(resnet.block1, x, mask) + resnet.mlp[1](functional.mish(time)).unsqueeze(2)
    x = _convolved(resnet.block2, hidden, mask) + _conv(resnet.res_conv, x * mask)
    x = x.mT.contiguous()
    added = ((1 - mask) * -1e10).unsqueeze(1).expand(-1, 1, x.shape[1], -1)
    for one in transformers:
        x = _attended(one.attn1, one.norm1(x), added) + x
        x = one.ff(one.norm3(x)) + x
    return x.mT.contiguous()


def _attended(attention: Any, x: Tensor, added: Tensor) -> Tensor:
    shape = (x.shape[0], x.shape[1], attention.heads, -1)
    query, key, value = (
        part(x).view(shape).transpose(1, 2)
        for part in (attention.to_q, attention.to_k, attention.to_v)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=added)
    return attention.to_out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


def _convolved(part: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Convolution, group norm, Mish."""
    conv, norm = part.block[0], part.block[1]
    x = _conv(conv, x * mask)
    x = functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return functional.mish(x) * mask


def _conv(conv: Any, x: Tensor) -> Tensor:
    """The convolution in a module of ours, whichever it is. x: (batch, width, frames)."""
    inner = conv if isinstance(conv, Conv | ConvUp) else conv.conv
    run: Any = functional.conv_transpose1d if isinstance(inner, ConvUp) else functional.conv1d
    return run(x, inner.weight, inner.bias, inner.stride, inner.padding)
