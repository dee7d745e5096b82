"""HiFT, the published vocoder: a harmonic source follows the pitch, a network shapes it."""

import math
import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osum_echat.errors import CheckpointError
from osum_echat.token2wav.layers import Conv, ConvUp, named
from osum_echat.token2wav.streaming import Past
from osum_echat.token2wav.voice import MELS, SAMPLE_RATE_HZ

LARGEST_MAGNITUDE = 100.0
PITCH_CONVS = 5                 # of three frames each
LAST_SLOPE = 0.01               # of the leaky ReLU before the last convolution: torch's default


@dataclass(frozen=True, slots=True)
class HiftSettings:
    """Sizes and constants; the defaults are those of the published 22.05 kHz model."""

    channels: int = 512
    pitch_channels: int = 512
    harmonics: int = 8                          # above the fundamental
    sine_level: float = 0.1
    noise_level: float = 0.003                  # where voiced
    voiced_above_hz: float = 10.0
    upsample: tuple[int, ...] = (8, 8)
    upsample_kernels: tuple[int, ...] = (16, 16)
    window_samples: int = 16                    # of the last, inverse Fourier transform
    hop_samples: int = 4
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_kernels: tuple[int, ...] = (7, 11)
    source_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 2
    slope: float = 0.1
    limit: float = 0.99


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

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def conv(dilation: int) -> Conv:
            pad = (kernel - 1) * dilation // 2
            return Conv(channels, channels, kernel, dilation=dilation, padding=pad)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for snake1, conv1, snake2, conv2 in pairs:
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


def _block_reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Steps on either side that a ResBlock sees."""
    return (kernel - 1) // 2 * (sum(dilations) + len(dilations))


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

    def __init__(self, settings: HiftSettings) -> None:
        super().__init__()
        self.settings = settings
        channels, bins = settings.channels, settings.window_samples + 2
        self.m_source = named(l_linear=nn.Linear(settings.harmonics + 1, 1))
        self.f0_predictor = PitchPredictor(settings.pitch_channels)
        self.conv_pre = Conv(MELS, channels, 7, padding=3)
        self.ups, self.source_downs, self.source_resblocks, self.resblocks = (
            nn.ModuleList() for _ in range(4)
        )
        for stage, (rate, kernel) in enumerate(
            zip(settings.upsample, settings.upsample_kernels, strict=True)
        ):
            width, pad = channels // 2 ** (stage + 1), (kernel - rate) // 2
            self.ups.append(ConvUp(2 * width, width, kernel, stride=rate, padding=pad))
            later = self._later()[stage]
            self.source_downs.append(
                Conv(bins, width, 1)
                if later == 1
                else Conv(bins, width, 2 * later, stride=later, padding=later // 2)
            )
            self.source_resblocks.append(
                ResBlock(width, settings.source_kernels[stage], settings.source_dilations[stage])
            )
            for size, dilations in zip(settings.kernels, settings.dilations, strict=True):
                self.resblocks.append(ResBlock(width, size, dilations))
        self.conv_post = Conv(channels // 2 ** len(settings.upsample), bins, 7, padding=3)
        # On the CPU also where the weights are yet to come: no file holds it.
        window = torch.hann_window(settings.window_samples, dtype=torch.float64, device="cpu")
        self.register_buffer("window", window.float(), persistent=False)

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.settings.upsample) * self.settings.hop_samples

    @property
    def noise_width(self) -> int:
        """Normal numbers of a frame: one for each sample and harmonic."""
        return self.samples_per_frame * (self.settings.harmonics + 1)

    @property
    def reach_frames(self) -> int:
        """By kernels and dilations: the pitch, the source of it, and the network behind."""
        settings = self.settings
        steps, reach = self.samples_per_frame / settings.hop_samples, 0.0
        reach += (settings.window_samples / settings.hop_samples + 6) / steps
        rate = 1
        for stage, up in enumerate(settings.upsample):
            rate *= up
            reach += settings.upsample_kernels[stage] / rate / 2
            reach += max(map(_block_reach, settings.kernels, settings.dilations)) / rate
        source = max(
            _block_reach(kernel, dilations) * later + later
            for kernel, dilations, later in zip(
                settings.source_kernels, settings.source_dilations, self._later(), strict=True
            )
        ) / steps
        return math.ceil(reach + max(3, PITCH_CONVS + source)) + 1

    def _later(self) -> list[int]:
        """Upsampling that is still to come after each stage."""
        rates = self.settings.upsample
        return [math.prod(rates[stage + 1 :]) for stage in range(len(rates))]

    def begin(self, generator: torch.Generator | None = None) -> Past:
        """No frames yet; each harmonic but the fundamental starts at a random phase."""
        device = self.conv_pre.weight.device
        turns = torch.rand(self.settings.harmonics + 1, generator=generator, dtype=torch.float64)
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
        begun, ended = (
            frames * self.samples_per_frame for frames in (past.frames, past.frames + new)
        )
        turns += past.turns.view(1, -1, 1) - (turns[:, :, begun - 1 : begun] if begun else 0)
        normal = noise.view(1, -1, self.settings.harmonics + 1).transpose(1, 2)
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
        f0 = pitch.repeat_interleave(self.samples_per_frame, dim=1).unsqueeze(1)
        number = torch.arange(1, self.settings.harmonics + 2, device=pitch.device).view(1, -1, 1)
        return torch.cumsum((f0 * number / SAMPLE_RATE_HZ).double(), dim=-1)

    def noisy(self, turns: Tensor, pitch: Tensor, noise: Tensor) -> Tensor:
        """Harmonics with noise, noise alone where unvoiced: (1, harmonics, samples).

        turns: (1, harmonics, samples) cycles; pitch: (1, frames), Hz; noise: normal, as turns.
        """
        settings = self.settings
        f0 = pitch.repeat_interleave(self.samples_per_frame, dim=1).unsqueeze(1)
        sine = settings.sine_level * torch.sin(2 * math.pi * turns.to(pitch.dtype))
        voiced = (f0 > settings.voiced_above_hz).to(pitch.dtype)
        level = voiced * settings.noise_level + (1 - voiced) * settings.sine_level / 3
        return sine * voiced + level * noise

    def mixed(self, sines: Tensor) -> Tensor:
        """(1, harmonics, samples) -> (1, samples)."""
        return torch.tanh(self.m_source(sines.transpose(1, 2))).squeeze(-1)

    def spectrum(self, source: Tensor) -> Tensor:
        """Fourier transform of (1, samples): (1, steps, window + 2), real parts first."""
        window, hop = self.settings.window_samples, self.settings.hop_samples
        shape = cast(Tensor, self.window)
        parts = torch.stft(source, window, hop, window, shape, return_complex=True)
        return torch.cat((parts.real, parts.imag), dim=1).transpose(1, 2)

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel: (1, frames, 80); source: (1, samples). Returns the sound, (1, samples)."""
        settings = self.settings
        spectrum = self.spectrum(source)
        x = self.conv_pre(mel)
        last, branches = len(self.ups) - 1, len(settings.kernels)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, settings.slope))
            if stage == last:
                x = torch.cat((x[:, 1:2], x), dim=1)
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectrum))
            blocks = self.resblocks[stage * branches : (stage + 1) * branches]
            x = torch.stack([block(x) for block in blocks]).sum(0) / branches
        parts = self.conv_post(F.leaky_relu(x, LAST_SLOPE)).transpose(1, 2)
        bins = settings.window_samples // 2 + 1
        magnitude = parts[:, :bins].exp().clamp(max=LARGEST_MAGNITUDE)
        phase = parts[:, bins:].sin()
        wave = torch.istft(
            torch.complex(magnitude * phase.cos(), magnitude * phase.sin()),
            settings.window_samples, settings.hop_samples, settings.window_samples,
            cast(Tensor, self.window),
        )
        return wave.clamp(-settings.limit, settings.limit)


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
