"""From token steps to mel frames: linear stretching, then a few convolutions."""

import torch
from torch import Tensor, nn

from osum_echat.token2wav.layers import Conv, GroupNorm, Mish, stretch

EDGE_TOKENS = 20        # at inference the first and the last 20 tokens are stretched on their own


class LengthRegulator(nn.Module):
    """Names follow the published file: `model.{0,3,..}` convolutions, `model.{1,4,..}` norms."""

    def __init__(self, channels: int, convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [Conv(channels, channels, 3, padding=1), GroupNorm(1, channels), Mish()]
        self.model = nn.Sequential(*layers, Conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, frames, channels), already stretched; the same shape comes back."""
        return self.model(x)


def stretch_with_edges(x: Tensor, frames: int, edge_frames: int) -> Tensor:
    """Stretch (1, tokens, width) to `frames`; the edges keep their own pace in longer rows.

    Over 40 tokens, the first and the last 20 become `edge_frames` each and the middle the rest, as
    the published model does at inference.
    """
    if x.shape[1] <= 2 * EDGE_TOKENS:
        return stretch(x, frames)
    head, middle, tail = x[:, :EDGE_TOKENS], x[:, EDGE_TOKENS:-EDGE_TOKENS], x[:, -EDGE_TOKENS:]
    return torch.cat(
        (
            stretch(head, edge_frames),
            stretch(middle, frames - 2 * edge_frames),
            stretch(tail, edge_frames),
        ),
        dim=1,
    )
