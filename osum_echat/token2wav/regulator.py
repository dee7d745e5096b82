"""From token steps to mel frames: linear stretching, then a few convolutions."""

import torch
from torch import Tensor, nn

from osum_echat.token2wav.layers import Conv, GroupNorm, Mish, masked, stretch

EDGE_TOKENS = 20        # at inference the first and the last 20 tokens are stretched on their own


class LengthRegulator(nn.Module):
    """Names follow the published file: `model.{0,3,..}` convolutions, `model.{1,4,..}` norms."""

    def __init__(self, channels: int, convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [Conv(channels, channels, 3, padding=1), GroupNorm(1, channels), Mish()]
        self.model = nn.Sequential(*layers, Conv(channels, channels, 1))

    def forward(self, x: Tensor, alone: Tensor | None = None) -> Tensor:
        """x: (batch, frames, channels), already stretched; the same shape comes back.

        alone: (batch, frames), the frames of each row, which are worked on as if it were alone;
        None for all.
        """
        if alone is None:
            return self.model(x)
        for layer in self.model:
            if isinstance(layer, GroupNorm):
                x = layer(x, alone)
            else:
                x = layer(masked(x, alone) if isinstance(layer, Conv) else x)
        return masked(x, alone)


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


def stretch_in_place(x: Tensor, first: int, start: int, stop: int, pace: float) -> Tensor:
    """Stretch (1, tokens, width), a part of a longer row, to the frames `start` to `stop` of it.

    first: the number of its first token; pace: frames a token. A frame gets the same mix of the
    same two tokens whatever the part, as a linear stretch of the whole row would give it.
    """
    last = x.shape[1] - 1
    frames = torch.arange(start, stop, dtype=torch.float64)
    places = ((frames + 0.5) / pace - 0.5 - first).clamp(0, last)
    before = places.long().clamp(max=max(0, last - 1))
    share = (places - before).to(x.device, x.dtype).view(1, -1, 1)
    before = before.to(x.device)
    return torch.lerp(x[:, before], x[:, (before + 1).clamp(max=last)], share)
