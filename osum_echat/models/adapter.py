"""The adapter: encoder steps at 50 Hz in, embeddings for the LLM at 12.5 Hz out."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from osum_echat.errors import ConfigError
from osum_echat.models.encoder import Block, interleaved_sinusoid, valid_mask


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Sizes of the adapter's transformer. The defaults are the published ones."""

    heads: int = 4
    units: int = 2560
    blocks: int = 4
    dropout: float = 0.1


class InputLayer(nn.Module):
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
        self.embed = InputLayer(width, settings.dropout)
        self.encoders = nn.ModuleList(
            Block(
                width,
                settings.heads,
                settings.units,
                key_bias=True,
                activation="relu",
                dropout=settings.dropout,
            )
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


def causal_convs(width: int) -> nn.Sequential:
    """Three convolutions that see no later step; the last two halve the rate each.

    (clips, width, steps) -> (clips, width, ceil(ceil(steps / 2) / 2)).
    """
    layers: list[nn.Module] = []
    for stride in (1, 2, 2):
        layers += [
            nn.ConstantPad1d((2, 0), 0.0),
            nn.Conv1d(width, width, 3, stride=stride),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)


class Adapter(nn.Module):
    """Convolutions (`convs`), `transformer`, then the `projection` to the width of the LLM."""

    def __init__(self, settings: AdapterSettings, width: int, llm_width: int) -> None:
        super().__init__()
        if width % settings.heads:
            raise ConfigError(f"adapter.heads {settings.heads}: must divide encoder.width {width}")
        self.settings = settings
        self.convs = causal_convs(width)
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
