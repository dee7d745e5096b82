"""The token encoder of the flow: pre-norm attention layers with relative positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, hidden)
        self.w_2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.dropout(F.silu(self.w_1(x))))


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
        self.feed_forward = FeedForward(width, settings.feed_forward, settings.dropout)
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
