"""HiFT, the published vocoder: a harmonic source follows the pitch, a network shapes it."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osum_echat.errors import CheckpointError
from osum_echat.token2wav.layers import Conv, ConvUp, named
from osum_echat.token2wav.streaming import Past
from osum_echat.token2wav.voice import HOP_SAMPLES, MELS, SAMPLE_RATE_HZ

# Of the published 22.05 kHz model.
HARMONICS = 8                   # above the fundamental
SINE_LEVEL, NOISE_LEVEL = 0.1, 0.003    # of the source; the noise where it is voiced
VOICED_ABOVE_HZ = 10.0
PITCH_CONVS = 5                 # of three frames each
UPSAMPLE, UPSAMPLE_KERNEL = (8, 8), 16
KERNELS, SOURCE_KERNELS = (3, 7, 11), (7, 11)
DILATIONS = (1, 3, 5)
WINDOW_SAMPLES, STEP_SAMPLES = 16, 4    # of the last, inverse Fourier transform
WINDOW = torch.hann_window(WINDOW_SAMPLES, dtype=torch.float64).float()
BINS = WINDOW_SAMPLES // 2 + 1
SLOPE, LAST_SLOPE = 0.1, 0.01   # of the leaky ReLUs; before the last convolution: torch's default
LARGEST_MAGNITUDE = 100.0
LIMIT = 0.99


@dataclass(frozen=True, slots=True)
class HiftSettings:
    """Sizes; the defaults are those of the published model."""

    channels: int = 512
    pitch_channels: int = 512


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, one alpha a channel, over (batch, frames, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        wave = (x * self.alpha).sin()
        return torch.addcmul(x, wave, wave / (self.alpha + 1e-9))


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each after a Snake, added back."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def conv(dilation: int) -> Conv:
            pad = (kernel - 1) * dilation // 2
            return Conv(channels, channels, kernel, dilation=dilation, padding=pad)

        self.convs1 = nn.ModuleList(map(conv, DILATIONS))
        self.convs2 = nn.ModuleList(conv(1) for _ in DILATIONS)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for snake1, conv1, snake2, conv2 in pairs:
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


class PitchPredictor(nn.Module):
    """Pitch in Hz of each mel frame, never negative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (MELS, *[channels] * (PITCH_CONVS - 1)):
            layers += [Conv(width, channels, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """mel: (batch, frames, mel) -> (batch, frames)."""
        return self.classifier(self.condnet(mel)).squeeze(-1).abs()


class Hift(nn.Module):
    """The vocoder of `hift.pt`, its weight norm folded into plain weights by `fold`."""

    noise_width = HOP_SAMPLES * (HARMONICS + 1)     # for each sample and harmonic
    reach_frames = 21               # by all kernels and dilations: pitch, source, and network

    def __init__(self, settings: HiftSettings) -> None:
        super().__init__()
        channels = settings.channels
        self.m_source = named(l_linear=nn.Linear(HARMONICS + 1, 1))
        self.f0_predictor = PitchPredictor(settings.pitch_channels)
        self.conv_pre = Conv(MELS, channels, 7, padding=3)
        self.ups, self.source_downs, self.source_resblocks, self.resblocks = (
            nn.ModuleList() for _ in range(4)
        )
        for stage, (rate, kernel) in enumerate(zip(UPSAMPLE, SOURCE_KERNELS, strict=True)):
            width, pad = channels // 2 ** (stage + 1), (UPSAMPLE_KERNEL - rate) // 2
            self.ups.append(ConvUp(2 * width, width, UPSAMPLE_KERNEL, stride=rate, padding=pad))
            later = math.prod(UPSAMPLE[stage + 1 :])
            size = 1 if later == 1 else 2 * later
            self.source_downs.append(
                Conv(2 * BINS, width, size, stride=later, padding=later // 2)
            )
            self.source_resblocks.append(ResBlock(width, kernel))
            self.resblocks.extend(ResBlock(width, size) for size in KERNELS)
        self.conv_post = Conv(width, 2 * BINS, 7, padding=3)

    def begin(self, generator: torch.Generator | None = None) -> Past:
        """No frames yet; each harmonic but the fundamental starts at a random phase."""
        device = self.conv_pre.weight.device
        turns = torch.rand(HARMONICS + 1, generator=generator, dtype=torch.float64)
        turns[0] = 0
        return Past(
            torch.zeros(1, MELS, 0, device=device), torch.zeros(1, 0, device=device),
            (turns - turns.round()).to(device),
        )  # fmt: skip

    @torch.no_grad()
    def render(self, mel: Tensor, noise: Tensor, past: Past, new: int) -> tuple[Tensor, Past]:
        """As `Vocoder.render`. The past keeps its pitch: its source goes on without a jump."""
        mel = torch.cat((past.mel, mel), dim=2)
        frames_first = mel.transpose(1, 2)
        pitch = torch.cat((past.pitch, self.f0_predictor(frames_first)[:, past.frames :]), dim=1)
        turns = self.turns(pitch)
        begun, ended = past.frames * HOP_SAMPLES, (past.frames + new) * HOP_SAMPLES
        turns += past.turns.view(1, -1, 1) - (turns[:, :, begun - 1 : begun] if begun else 0)
        normal = noise.view(1, -1, HARMONICS + 1).transpose(1, 2)
        wave = self.decode(frames_first, self.mixed(self.noisy(turns % 1, pitch, normal)))
        keep = slice(max(0, past.frames + new - self.reach_frames), past.frames + new)
        last = turns[0, :, ended - 1] % 1 if ended else past.turns
        return wave, Past(mel[:, :, keep], pitch[:, keep], last)

    def turns(self, pitch: Tensor) -> Tensor:
        """Cycles of each harmonic after each sample: (1, harmonics, samples), double precision.

        The published arithmetic rounds them to single precision while they still count from the
        start, which costs 1e-3 of a cycle at 10 s; `render` takes them modulo 1 before.

        pitch: (1, frames) in Hz.
        """
        f0 = pitch.repeat_interleave(HOP_SAMPLES, dim=1).unsqueeze(1)
        number = torch.arange(1, HARMONICS + 2, device=pitch.device).view(1, -1, 1)
        return torch.cumsum((f0 * number / SAMPLE_RATE_HZ).double(), dim=-1)

    def noisy(self, turns: Tensor, pitch: Tensor, noise: Tensor) -> Tensor:
        """Harmonics with noise, noise alone where unvoiced: (1, harmonics, samples).

        turns: (1, harmonics, samples) cycles; pitch: (1, frames), Hz; noise: normal, as turns.
        """
        f0 = pitch.repeat_interleave(HOP_SAMPLES, dim=1).unsqueeze(1)
        sine = SINE_LEVEL * torch.sin(2 * math.pi * turns.to(pitch.dtype))
        voiced = (f0 > VOICED_ABOVE_HZ).to(pitch.dtype)
        level = voiced * NOISE_LEVEL + (1 - voiced) * SINE_LEVEL / 3
        return sine * voiced + level * noise

    def mixed(self, sines: Tensor) -> Tensor:
        """(1, harmonics, samples) -> (1, samples)."""
        return torch.tanh(self.m_source(sines.transpose(1, 2))).squeeze(-1)

    def spectrum(self, source: Tensor) -> Tensor:
        """Fourier transform of (1, samples): (1, steps, 2 * bins), real parts first."""
        parts = torch.stft(source, WINDOW_SAMPLES, STEP_SAMPLES, window=WINDOW.to(source.device),
                           return_complex=True)  # fmt: skip
        return torch.cat((parts.real, parts.imag), dim=1).transpose(1, 2)

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel: (1, frames, 80); source: (1, samples). Returns the sound, (1, samples)."""
        spectrum = self.spectrum(source)
        x = self.conv_pre(mel)
        last, branches = len(self.ups) - 1, len(KERNELS)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if stage == last:
                x = torch.cat((x[:, 1:2], x), dim=1)
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectrum))
            blocks = self.resblocks[stage * branches : (stage + 1) * branches]
            x = torch.stack([block(x) for block in blocks]).sum(0) / branches
        parts = self.conv_post(F.leaky_relu(x, LAST_SLOPE)).transpose(1, 2)
        magnitude = parts[:, :BINS].exp().clamp(max=LARGEST_MAGNITUDE)
        phase = parts[:, BINS:].sin()
        wave = torch.istft(
            torch.complex(magnitude * phase.cos(), magnitude * phase.sin()),
            WINDOW_SAMPLES, STEP_SAMPLES, window=WINDOW.to(x.device),
        )  # fmt: skip
        return wave.clamp(-LIMIT, LIMIT)


def fold(tensors: dict[str, Tensor], where: str = "vocoder") -> dict[str, Tensor]:
    """Bring any naming of a vocoder file, `where`, to plain weights.

    Weight norm comes as `weight_g`/`weight_v`, as `parametrizations.weight.original0`/`1`, or is
    gone; a training checkpoint has `generator.` in its names and the discriminator beside it.
    """
    named = {
        re.sub(r"\.parametrizations\.weight\.original", ".weight_", key.replace("generator.", ""))
        .replace(".weight_0", ".weight_g").replace(".weight_1", ".weight_v"): value
        for key, value in tensors.items()
        if not key.startswith("discriminator.")
    }
    plain = {}
    for key, value in named.items():
        stem, part = key[:-1], key[-len("weight_v") :]
        partner = named.get(stem + {"weight_v": "g", "weight_g": "v"}.get(part, ""))
        if part not in ("weight_v", "weight_g") or partner is None:
            plain[key] = value
        elif part == "weight_v":
            size = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            if partner.shape != size.shape:
                raise CheckpointError(
                    f"{where}: {stem}g {tuple(partner.shape)}, need {tuple(size.shape)}; "
                    "copy the file again"
                )
            plain[stem.removesuffix("_")] = partner * (value / size)
    return plain
