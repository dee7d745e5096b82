"""NSF-Vocos: a small vocoder that shapes pulses and noise frame by frame in the spectrum."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osum_echat.errors import ConfigError
from osum_echat.token2wav.voice import HOP_SAMPLES, MELS, SAMPLE_RATE_HZ, WINDOW_SAMPLES, mel_basis

BINS = WINDOW_SAMPLES // 2 + 1
EDGE_SAMPLES = (WINDOW_SAMPLES - HOP_SAMPLES) // 2          # as the mel's own padding
MEL_MEAN, MEL_SCALE = -5.5, 2.2
LEAST_MAGNITUDE = 1e-3
LARGEST_LOG_GAIN = 8.0
LOWEST_HZ, HIGHEST_HZ = 55.0, 500.0
PITCH_STEP_CENTS = 30
PITCH_CLASSES = round(1200 * math.log2(HIGHEST_HZ / LOWEST_HZ) / PITCH_STEP_CENTS)
PITCH_NEAR_CLASSES = 4              # around the likeliest class, averaged for the pitch


@dataclass(frozen=True, slots=True)
class NsfVocosSettings:
    """Sizes: of the ConvNeXt stack, and of the pitch predictor beside it."""

    width: int = 256
    blocks: int = 6
    expansion: int = 2
    kernel: int = 7
    pitch_width: int = 128
    pitch_blocks: int = 3

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ConfigError(f"vocoder.kernel {self.kernel}: must be odd")


class ConvNeXt(nn.Module):
    """Depthwise convolution, norm, two linear layers, added to the input: (rows, frames, width)."""

    def __init__(self, width: int, expansion: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            width, width, (1, kernel), padding=(0, kernel // 2), groups=width
        )
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, width * expansion)
        self.narrow = nn.Linear(width * expansion, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, hidden: Tensor) -> Tensor:
        # Seen as an image one pixel high, channels last: twice as fast on a CPU as Conv1d.
        moved = self.depthwise(hidden.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        return hidden + self.narrow(F.gelu(self.widen(self.norm(moved)))) * self.scale


class PitchPredictor(nn.Module):
    """Pitch and voicing from the mel: classes of 30 cents, averaged around the likeliest."""

    def __init__(self, width: int, blocks: int, kernel: int) -> None:
        super().__init__()
        self.start = nn.Conv1d(MELS, width, kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(ConvNeXt(width, 2, kernel, 1 / blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1 + PITCH_CLASSES)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """mel: (rows, 80, frames). Logits of voicing (rows, frames) and of the class
        (rows, frames, classes)."""
        hidden = self.start((mel - MEL_MEAN) / MEL_SCALE).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(self.norm(hidden))
        return logits[..., 0], logits[..., 1:]

    def pitch(self, mel: Tensor) -> Tensor:
        """mel: (rows, 80, frames). Pitch in Hz, 0 where unvoiced: (rows, frames)."""
        voicing, classes = self(mel)
        chances = classes.float().softmax(-1)
        numbers = torch.arange(PITCH_CLASSES, device=mel.device)
        near = (numbers - chances.argmax(-1, keepdim=True)).abs() <= PITCH_NEAR_CLASSES
        chances = chances * near
        place = (chances * numbers).sum(-1) / chances.sum(-1)
        hertz = LOWEST_HZ * torch.exp2(place * PITCH_STEP_CENTS / 1200)
        return torch.where(voicing > 0, hertz, 0.0)

    def loss(self, mel: Tensor, hertz: Tensor) -> Tensor:
        """Cross-entropies of voicing and of the class. hertz: (rows, frames), 0 where unvoiced."""
        voicing, classes = self(mel)
        voiced = hertz > 0
        places = 1200 * torch.log2(hertz.clamp(LOWEST_HZ, HIGHEST_HZ) / LOWEST_HZ)
        target = (places / PITCH_STEP_CENTS).round().long().clamp(max=PITCH_CLASSES - 1)
        found = F.cross_entropy(classes[voiced].float(), target[voiced], reduction="sum")
        called = F.binary_cross_entropy_with_logits(voicing.float(), voiced.float())
        return called + found / max(1, voiced.numel())


class NsfVocos(nn.Module):
    """Mel to wave. A source of pulses at the pitch and one of noise go to the spectrum; for each
    frame and bin the network gives the gain of both and the pulses' phase, on top of the
    magnitude that the mel implies."""

    def __init__(self, settings: NsfVocosSettings) -> None:
        super().__init__()
        self.settings = settings
        self.pitch_predictor = PitchPredictor(
            settings.pitch_width, settings.pitch_blocks, settings.kernel
        )
        self.start = nn.Conv1d(
            MELS + 2, settings.width, settings.kernel, padding=settings.kernel // 2
        )
        self.start_norm = nn.LayerNorm(settings.width)
        self.blocks = nn.ModuleList(
            ConvNeXt(settings.width, settings.expansion, settings.kernel, 1 / settings.blocks)
            for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, 3 * BINS)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def wave(self, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """mel: (1, 80, frames), natural log. Returns (1, frames * 256) at 22.05 kHz."""
        with torch.no_grad():
            noise = draw_noise(mel, generator)
            return self(mel, self.pitch_predictor.pitch(mel), noise).clamp(-0.99, 0.99)

    def forward(self, mel: Tensor, hertz: Tensor, noise: Tensor) -> Tensor:
        """mel: (rows, 80, frames); hertz: (rows, frames), 0 where unvoiced; noise: (rows, samples),
        standard normal. Returns (rows, samples)."""
        voiced = (hertz > 0).float()
        height = torch.where(hertz > 0, torch.log2(hertz.clamp(min=1) / 150), 0.0)
        told = torch.cat(((mel - MEL_MEAN) / MEL_SCALE, height[:, None], voiced[:, None]), 1)
        hidden = self.start_norm(self.start(told).transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden)
        gains = self.head(self.norm(hidden)).float()
        pulse_gain, noise_gain, phase = gains.split(BINS, 2)
        base = implied_magnitude(mel)
        pulses = spectrum(pulse_train(hertz)) * torch.polar(
            base * pulse_gain.clamp(max=LARGEST_LOG_GAIN).exp(), phase
        )
        hiss = spectrum(noise) * (base * noise_gain.clamp(max=LARGEST_LOG_GAIN).exp())
        return joined(pulses + hiss)


def draw_noise(mel: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers for each sample of mel (rows, 80, frames): (rows, samples)."""
    shape = (mel.shape[0], mel.shape[2] * HOP_SAMPLES)
    return torch.randn(shape, generator=generator).to(mel.device)


@cache
def _inverse_basis() -> Tensor:
    return torch.linalg.pinv(mel_basis().double()).float()


@cache
def _window() -> Tensor:
    return torch.hann_window(WINDOW_SAMPLES)


def implied_magnitude(mel: Tensor) -> Tensor:
    """The spectrum's magnitude that a mel implies: (rows, 80, frames) -> (rows, frames, bins).

    Above the mel's 8 kHz it goes on at the level of the last bands.
    """
    levels = mel.float().exp().transpose(1, 2)
    magnitude = (levels @ _inverse_basis().to(mel.device).T).clamp(min=LEAST_MAGNITUDE)
    top = int((mel_basis()[-1] > 0).nonzero()[0])
    last = magnitude[:, :, top - 12 : top].mean(2, keepdim=True)
    return torch.cat((magnitude[:, :, :top], last.expand(-1, -1, BINS - top)), 2)


def pulse_train(hertz: Tensor) -> Tensor:
    """All harmonics of a pitch below Nyquist in phase, of power 1; nothing where unvoiced.

    hertz: (rows, frames). Returns (rows, frames * 256).
    """
    voiced = hertz > 0
    steady = _filled(hertz)
    upsampled = F.interpolate(
        steady[:, None], scale_factor=HOP_SAMPLES, mode="linear", align_corners=False
    )[:, 0].double()
    turns = torch.cumsum(upsampled / SAMPLE_RATE_HZ, 1)
    half = (turns - turns.round()) * math.pi
    harmonics = torch.floor(SAMPLE_RATE_HZ / 2 / steady.double())
    count = harmonics.repeat_interleave(HOP_SAMPLES, 1)
    bottom = torch.sin(half)
    safe = torch.where(bottom.abs() < 1e-6, 1e-6, bottom)
    summed = torch.where(
        bottom.abs() < 1e-6, count, (torch.sin((2 * count + 1) * half) / safe - 1) / 2
    )
    on = F.interpolate(voiced.double()[:, None], scale_factor=HOP_SAMPLES)[:, 0]
    return (summed * torch.sqrt(2 / count) * on).float()


def _filled(hertz: Tensor) -> Tensor:
    """Unvoiced frames take the pitch of the last voiced one, or of the first: (rows, frames)."""
    frames = torch.arange(hertz.shape[1], device=hertz.device)
    last = torch.where(hertz > 0, frames, -1).cummax(1).values
    first = (hertz > 0).float().argmax(1, keepdim=True)
    filled = hertz.gather(1, torch.where(last < 0, first, last))
    return torch.where(filled > 0, filled, 100.0)


def spectrum(samples: Tensor) -> Tensor:
    """Short-time spectrum on the mel's frames, about 1 in size for samples of power 1.

    samples: (rows, frames * 256). Returns (rows, frames, bins), complex.
    """
    padded = F.pad(samples[:, None], (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")[:, 0]
    window = _window().to(samples.device)
    pieces = padded.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES) * (window / window.norm())
    return torch.fft.rfft(pieces, dim=2)


def joined(frames: Tensor) -> Tensor:
    """Inverse short-time spectrum: (rows, frames, bins), complex -> (rows, frames * 256)."""
    window = _window().to(frames.device)
    pieces = torch.fft.irfft(frames, WINDOW_SAMPLES, dim=2) * window
    share = overlapped(window.square().expand(1, frames.shape[1], -1))
    samples = overlapped(pieces) / share.clamp(min=1e-6)
    return samples[:, EDGE_SAMPLES : EDGE_SAMPLES + frames.shape[1] * HOP_SAMPLES]


def overlapped(pieces: Tensor) -> Tensor:
    """Windows laid a hop apart and added: (rows, frames, window) -> (rows, samples)."""
    rows, frames, window = pieces.shape
    hops = pieces.reshape(rows, frames, window // HOP_SAMPLES, HOP_SAMPLES)
    late = hops.shape[2] - 1
    laid = [F.pad(hops[:, :, hop], (0, 0, hop, late - hop)) for hop in range(late + 1)]
    return torch.stack(laid).sum(0).reshape(rows, -1)
