"""Speech units: what a small speech tokenizer computes, and k-means for its codes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osum_echat.errors import ConfigError, DataError
from osum_echat.models.encoder import Encoder, EncoderSettings

FRAMES_PER_UNIT = 4                    # 100 frames and 25 units a second
LOG_MEL_SPAN, LOG_MEL_SHIFT = 4.0, 4.0          # the log-mel is (log10 energy + 4) / 4
PITCH_HIDDEN = 128
ENERGY_FLOOR = -2.5                 # deviations of loud units: deeper silence is all one


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """Sizes of the units, and how far pitch and energy count beside the phonetic features."""

    layers: int = 3                    # of the Whisper encoder
    codes: int = 1024
    phonetic: int = 64                 # dimensions kept of the last layer; their variances sum to 1
    pitch_weight: float = 0.5          # standard deviation of the pitch feature
    energy_weight: float = 0.4         # the same, among loud units

    def __post_init__(self) -> None:
        if not 2 <= self.codes <= 4096:
            raise ConfigError(f"units.codes {self.codes}: need 2 to 4096")
        if self.layers < 1 or self.phonetic < 1:
            raise ConfigError("units.layers and units.phonetic: need 1 or more")


class SpeechUnits(nn.Module):
    """Log-mel of one clip to unit numbers, 25 a second: nearest code to what is said and how.

    What is said: a layer of an ASR-trained encoder, projected. How: pitch, guessed from the first
    layer and the mel, and energy, measured. The maker fills weights and buffers (train_tokenizer).
    """

    mean: Tensor
    projection: Tensor
    energy_moments: Tensor
    codebook: Tensor

    def __init__(self, encoder: EncoderSettings, units: UnitSettings) -> None:
        super().__init__()
        self.units = units
        self.mels = encoder.mels
        whole = Encoder(encoder)
        self.embed = whole.embed
        self.blocks = nn.ModuleList(list(whole.encoders)[: units.layers])
        self.pitch_of_mel = nn.Conv1d(encoder.mels, PITCH_HIDDEN, FRAMES_PER_UNIT, FRAMES_PER_UNIT)
        self.pitch_of_layer = nn.Sequential(
            nn.LayerNorm(encoder.width), nn.Linear(encoder.width, PITCH_HIDDEN)
        )
        self.pitch_head = nn.Linear(PITCH_HIDDEN, 2)
        width = units.phonetic + 2
        self.register_buffer("mean", torch.zeros(encoder.width))
        self.register_buffer("projection", torch.zeros(encoder.width, units.phonetic))
        self.register_buffer("energy_moments", torch.tensor([0.0, 1.0]))
        self.register_buffer("codebook", torch.zeros(units.codes, width))

    def layers(self, feats: Tensor) -> tuple[Tensor, Tensor]:
        """feats: (1, mel, frames). The first and the last layer at 25 Hz: (units, width) each."""
        steps = self.embed(feats.transpose(1, 2))
        first = steps
        for number, block in enumerate(self.blocks):
            steps = block(steps, None)
            first = steps if number == 0 else first
        return halved(first), halved(steps)

    def pitch(self, feats: Tensor, first: Tensor) -> Tensor:
        """(units, 2): the logit of being voiced, and standardised log pitch."""
        padded = F.pad(feats, (0, FRAMES_PER_UNIT - 1), mode="replicate")
        hidden = self.pitch_of_mel(padded)[0].T + self.pitch_of_layer(first)
        return self.pitch_head(F.gelu(hidden))

    def energy(self, feats: Tensor) -> Tensor:
        """(units,): log energy, the mean over the unit's frames, standardised on loud units."""
        logs = (feats * LOG_MEL_SPAN - LOG_MEL_SHIFT) * 2.302585
        level = torch.logsumexp(logs, dim=1, keepdim=True)
        padded = F.pad(level, (0, FRAMES_PER_UNIT - 1), mode="replicate")
        mean = F.avg_pool1d(padded, FRAMES_PER_UNIT)[0, 0]
        return (mean - self.energy_moments[0]) / self.energy_moments[1]

    def features(self, feats: Tensor) -> Tensor:
        """(units, phonetic + 2): the space in which codes are compared."""
        first, last = self.layers(feats)
        phonetic = (last - self.mean) @ self.projection
        voiced, height = self.pitch(feats, first).unbind(1)
        melody = torch.sigmoid(voiced) * height * self.units.pitch_weight
        energy = self.energy(feats).clamp(min=ENERGY_FLOOR) * self.units.energy_weight
        return torch.cat((phonetic, melody[:, None], energy[:, None]), dim=1)

    def forward(self, feats: Tensor, feats_length: Tensor) -> Tensor:
        """feats: (1, mel, frames); feats_length: (1,), frames past it count as silence.

        Returns indices (1, units), int64.
        """
        inside = torch.arange(feats.shape[2], device=feats.device) < feats_length
        heard = torch.where(inside, feats, feats.min())
        return nearest(self.features(heard), self.codebook)[None]


def halved(steps: Tensor) -> Tensor:
    """Means of neighbours, the last one alone if it is odd: (1, steps, width) -> (units, width)."""
    padded = F.pad(steps.transpose(1, 2), (0, 1), mode="replicate")
    return F.avg_pool1d(padded, 2)[0].T


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """The number of the code nearest to each point: (points,)."""
    return (points @ codebook.T - 0.5 * codebook.square().sum(1)).argmax(1)


def kmeans(points: Tensor, codes: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Codes (codes, width) that lie near points (points, width): k-means++, then Lloyd's steps."""
    if len(points) < codes:
        raise DataError(f"k-means: {len(points)} points for {codes} codes; give more audio")
    codebook = _spread(points, codes, generator)
    for _ in range(iterations):
        chosen = nearest(points, codebook)
        counts = torch.bincount(chosen, minlength=codes)
        sums = torch.zeros_like(codebook).index_add(0, chosen, points)
        codebook = sums / counts.clamp(min=1)[:, None]
        empty = torch.nonzero(counts == 0)[:, 0]
        if len(empty):
            codebook[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return codebook


def _spread(points: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """First codes: points drawn by their squared distance to those drawn before (k-means++)."""
    drawn = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = (points - points[drawn[0]]).square().sum(1)
    while len(drawn) < codes:
        total = torch.cumsum(distances.double(), 0)
        mark = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        drawn.append(min(int(torch.searchsorted(total, mark)), len(points) - 1))
        distances = torch.minimum(distances, (points - points[drawn[-1]]).square().sum(1))
    return points[drawn].clone()
