"""NSF-Vocos: a small vocoder that shapes pulses and noise frame by frame in the spectrum."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osum_echat.errors import ConfigError
from osum_echat.token2wav.streaming import Past
from osum_echat.token2wav.voice import HOP_SAMPLES, MELS, SAMPLE_RATE_HZ, WINDOW_SAMPLES, mel_bank

BINS = WINDOW_SAMPLES // 2 + 1
EDGE_SAMPLES = (WINDOW_SAMPLES - HOP_SAMPLES) // 2          # as the mel's own padding
WINDOW = torch.hann_window(WINDOW_SAMPLES)
MEL_MEAN, MEL_SCALE = -5.5, 2.2
LEAST_MAGNITUDE = 1e-3
LARGEST_LOG_GAIN = 8.0
LIMIT = 0.99
NO_PITCH_HZ = 100.0                 # stands in where nothing is voiced
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

    noise_width = HOP_SAMPLES       # one for each sample

    def __init__(self, settings: NsfVocosSettings) -> None:
        super().__init__()
        layers = 2 + settings.blocks + settings.pitch_blocks
        # By the kernels: the pitch, the network behind it, and the windows that overlap.
        self.reach_frames = settings.kernel // 2 * layers + 2 * (WINDOW_SAMPLES // HOP_SAMPLES)
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

    def begin(self, generator: torch.Generator | None = None) -> Past:
        """No frames yet. The pulses have no random phase: the first voiced frame begins with one.

        The rows of the past's pitch: Hz, 0 where unvoiced; Hz carried on over unvoiced frames.
        """
        device = self.head.weight.device
        return Past(
            torch.zeros(1, MELS, 0, device=device), torch.zeros(2, 0, device=device),
            torch.zeros(1, dtype=torch.float64, device=device),
        )  # fmt: skip

    @torch.no_grad()
    def render(self, mel: Tensor, noise: Tensor, past: Past, new: int) -> tuple[Tensor, Past]:
        """As `Vocoder.render`. The past keeps its pitch: the pulses go on without a jump."""
        mel = torch.cat((past.mel, mel), dim=2)
        begun, ended = past.frames, past.frames + new
        found = self.pitch_predictor.pitch(mel)[:, begun:]
        hertz = torch.cat((past.pitch[:1], found), dim=1)
        steady = torch.cat((past.pitch[1:], carried(found, past.pitch[1:, -1:])), dim=1)
        turns = cycles(filled(steady))
        if begun and steady[0, begun - 1] > 0:
            turns += past.turns - turns[:, begun * HOP_SAMPLES - 1]
        else:
            turns -= before_voice(turns, hertz)
        pulses = pulses_at(turns, filled(steady), hertz > 0)
        wave = self.shaped(mel, hertz, pulses, noise.reshape(1, -1)).clamp(-LIMIT, LIMIT)
        keep = slice(max(0, ended - self.reach_frames), ended)
        last = turns[:, ended * HOP_SAMPLES - 1] % 1 if ended else past.turns
        return wave, Past(mel[:, :, keep], torch.cat((hertz, steady))[:, keep], last)

    def forward(self, mel: Tensor, hertz: Tensor, noise: Tensor) -> Tensor:
        """mel: (rows, 80, frames); hertz: (rows, frames), 0 where unvoiced; noise: (rows, samples),
        standard normal. Returns (rows, samples)."""
        return self.shaped(mel, hertz, pulse_train(hertz), noise)

    def shaped(self, mel: Tensor, hertz: Tensor, pulses: Tensor, noise: Tensor) -> Tensor:
        """As `forward`, with the pulses (rows, samples) made before."""
        voiced = (hertz > 0).float()
        height = torch.where(hertz > 0, torch.log2(hertz.clamp(min=1) / 150), 0.0)
        told = torch.cat(((mel - MEL_MEAN) / MEL_SCALE, height[:, None], voiced[:, None]), 1)
        hidden = self.start_norm(self.start(told).transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden)
        gains = self.head(self.norm(hidden)).float()
        pulse_gain, noise_gain, phase = gains.split(BINS, 2)
        base = implied_magnitude(mel)
        voice = spectrum(pulses) * torch.polar(
            base * pulse_gain.clamp(max=LARGEST_LOG_GAIN).exp(), phase
        )
        hiss = spectrum(noise) * (base * noise_gain.clamp(max=LARGEST_LOG_GAIN).exp())
        return joined(voice + hiss)


@cache
def _inverse_basis() -> Tensor:
    return torch.linalg.pinv(mel_bank().T.contiguous().double()).float()


def implied_magnitude(mel: Tensor) -> Tensor:
    """The spectrum's magnitude that a mel implies: (rows, 80, frames) -> (rows, frames, bins).

    Above the mel's 8 kHz it goes on at the level of the last bands.
    """
    levels = mel.float().exp().transpose(1, 2)
    magnitude = (levels @ _inverse_basis().to(mel.device).T).clamp(min=LEAST_MAGNITUDE)
    top = int((mel_bank()[:, -1] > 0).nonzero()[0])
    last = magnitude[:, :, top - 12 : top].mean(2, keepdim=True)
    return torch.cat((magnitude[:, :, :top], last.expand(-1, -1, BINS - top)), 2)


def pulse_train(hertz: Tensor) -> Tensor:
    """All harmonics of a pitch below Nyquist in phase, of power 1; nothing where unvoiced.

    hertz: (rows, frames). Returns (rows, frames * 256). The first voiced frame begins with a pulse.
    """
    steady = filled(carried(hertz))
    turns = cycles(steady)
    return pulses_at(turns - before_voice(turns, hertz), steady, hertz > 0)


def carried(hertz: Tensor, before: Tensor | None = None) -> Tensor:
    """Unvoiced frames take the pitch of the last voiced one: (rows, frames), 0 where none was.

    before: (rows, 1 or 0), the pitch carried up to these frames.
    """
    begun = hertz.new_zeros(len(hertz), 1) if before is None or not before.numel() else before
    known = torch.cat((begun, hertz), 1)
    frames = torch.arange(known.shape[1], device=hertz.device)
    last = torch.where(known > 0, frames, 0).cummax(1).values
    return known.gather(1, last)[:, 1:]


def filled(steady: Tensor) -> Tensor:
    """What is still without a pitch takes the first one there is: (rows, frames)."""
    first = (steady > 0).float().argmax(1, keepdim=True)
    known = torch.where(steady > 0, steady, steady.gather(1, first))
    return torch.where(known > 0, known, NO_PITCH_HZ)


def cycles(steady: Tensor) -> Tensor:
    """Cycles after each sample of a pitch that glides from frame to frame: (rows, samples)."""
    glide = F.interpolate(
        steady[:, None], scale_factor=HOP_SAMPLES, mode="linear", align_corners=False
    )[:, 0].double()
    return torch.cumsum(glide / SAMPLE_RATE_HZ, 1)


def before_voice(turns: Tensor, hertz: Tensor) -> Tensor:
    """What `turns` (rows, samples) had come to when the first voiced frame began: (rows, 1)."""
    begin = (hertz > 0).float().argmax(1, keepdim=True) * HOP_SAMPLES
    return F.pad(turns, (1, 0)).gather(1, begin)


def pulses_at(turns: Tensor, steady: Tensor, voiced: Tensor) -> Tensor:
    """Pulses where `turns` (rows, samples) pass whole numbers; steady, voiced: (rows, frames)."""
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


def spectrum(samples: Tensor) -> Tensor:
    """Short-time spectrum on the mel's frames, about 1 in size for samples of power 1.

    samples: (rows, frames * 256). Returns (rows, frames, bins), complex.
    """
    padded = F.pad(samples[:, None], (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")[:, 0]
    window = WINDOW.to(samples.device)
    pieces = padded.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES) * (window / window.norm())
    return torch.fft.rfft(pieces, dim=2)


def joined(frames: Tensor) -> Tensor:
    """Inverse short-time spectrum: (rows, frames, bins), complex -> (rows, frames * 256)."""
    window = WINDOW.to(frames.device)
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
