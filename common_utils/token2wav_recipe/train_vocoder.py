"""Train the NSF-Vocos vocoder.

python -m common_utils.token2wav_recipe.train_vocoder CONFIG [key=value ...]
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from common_utils.token2wav_recipe import pitch, runs
from common_utils.token2wav_recipe.runs import Trainer, Training
from osum_echat import device as devices
from osum_echat import weights
from osum_echat.errors import ConfigError, DataError
from osum_echat.settings import check_numbers
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.token2wav.streaming import whole_wave
from osum_echat.token2wav.voice import HOP_SAMPLES, SAMPLE_RATE_HZ, mel_bank, prompt_mel
from osum_echat.training.scheduler import ScheduleSettings

VOCODER_FILE = "vocoder.safetensors"
NYQUIST_HZ = SAMPLE_RATE_HZ / 2
RESOLUTIONS = (512, 1024, 2048)             # window samples of the spectral losses
LEAST_POWER = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class VocoderTraining(Training):
    """One training of a vocoder. Of the raw lists only `wav`, `start` and `end` are read."""

    lists: tuple[str, ...]
    vocoder: NsfVocosSettings = field(default_factory=NsfVocosSettings)
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(
        kind="cosine", rate=8e-4, warmup_steps=50, min_rate=2e-5))  # fmt: skip
    batch: int = 16
    crop_frames: int = 48
    pitch_crop_frames: int = 64
    pitch_updates: int = 3                  # of the pitch predictor for each step of the rest
    pitch_noise: float = 0.3                # on the pitch predictor's mels: predicted mels differ
    mel_weight: float = 15.0
    spectral_weight: float = 5.0
    clip: float = 50.0
    pitch_clip: float = 1.0
    average: float = 0.997
    held_out: int = 20                      # rows at the end, only scored
    minutes: float = 90.0                   # of audio, at most

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        check_numbers(self, "vocoder training", "batch pitch_crop_frames", 1)
        check_numbers(self, "vocoder training", "pitch_updates held_out minutes", 0)
        if self.crop_frames * HOP_SAMPLES < max(RESOLUTIONS):
            raise ConfigError(f"vocoder training: crop_frames {self.crop_frames} is too short")


@dataclass(frozen=True, slots=True)
class Recording:
    """wave: (frames * 256,) half precision; mel: (80, frames); hertz: (frames,), 0 unvoiced.

    Of crops in a batch each has another axis before these, and the wave is float32.
    """

    wave: Tensor
    mel: Tensor
    hertz: Tensor


def read(training: VocoderTraining) -> list[Recording]:
    """Every row's wave, mel and true pitch, up to the minutes asked for."""
    rows = runs.read_lists(training.lists)
    random.Random(training.seed).shuffle(rows)
    recordings = []
    for wave in runs.loaded(rows, training.minutes, SAMPLE_RATE_HZ):
        hertz = torch.from_numpy(pitch.track(wave.numpy(), SAMPLE_RATE_HZ, HOP_SAMPLES))
        wave = wave[: len(hertz) * HOP_SAMPLES]
        recordings.append(Recording(wave.half(), prompt_mel(wave)[0].T, hertz))
    return recordings


class VocoderTrainer(Trainer):
    """Crops of the recordings to the losses of the wave and of the pitch."""

    def __init__(self, training: VocoderTraining, recordings: Sequence[Recording]) -> None:
        self.training = training
        torch.manual_seed(training.seed)
        self.vocoder = NsfVocos(training.vocoder)
        super().__init__(training, "vocoder", self.vocoder)
        tracker = set(self.vocoder.pitch_predictor.parameters())
        self.shapers = [part for part in self.vocoder.parameters() if part not in tracker]
        self.optimizer, self.pitch_optimizer = (
            torch.optim.AdamW(parts, training.schedule.rate, betas=(0.8, 0.99), fused=True)
            for parts in (self.shapers, list(self.vocoder.pitch_predictor.parameters()))
        )
        self.parts |= {"optimizer": self.optimizer, "pitch_optimizer": self.pitch_optimizer}
        longest = max(training.crop_frames, training.pitch_crop_frames)
        learnt = recordings[: len(recordings) - training.held_out]
        self.learnt = [one for one in learnt if len(one.hertz) >= longest]
        self.held_out = list(recordings[len(recordings) - training.held_out :])
        if not self.learnt:
            raise DataError(f"vocoder training: no row of {longest} frames besides the held-out")

    def crops(self, frames: int) -> Recording:
        """Random stretches of random recordings."""
        waves, mels, pitches = [], [], []
        for _ in range(self.training.batch):
            one = self.learnt[self.draw(len(self.learnt))]
            start = self.draw(len(one.hertz) - frames + 1)
            waves.append(one.wave[start * HOP_SAMPLES : (start + frames) * HOP_SAMPLES].float())
            mels.append(one.mel[:, start : start + frames])
            pitches.append(one.hertz[start : start + frames])
        parts = (torch.stack(each).to(self.device) for each in (waves, mels, pitches))
        return Recording(*parts)

    def step(self) -> dict[str, float]:
        """One step: the wave's losses on some crops, the pitch predictor's on others."""
        training = self.training
        crops = self.crops(training.crop_frames)
        samples = crops.mel.shape[2] * HOP_SAMPLES
        noise = torch.randn(len(crops.mel), samples, generator=self.generator)
        noise = noise.to(crops.mel.device)
        with devices.autocast(self.device, self.dtype):
            made = self.vocoder(crops.mel, crops.hertz, noise)
        mel, spectral = wave_losses(made, crops.wave)
        (training.mel_weight * mel + training.spectral_weight * spectral).backward()
        norm = nn.utils.clip_grad_norm_(self.shapers, training.clip)
        rate = self.rate()
        applied = runs.apply(self.optimizer, norm, rate)
        tracking = [self.pitch_step(rate) for _ in range(training.pitch_updates)]
        self.average.update()
        self.steps += 1
        return {
            "mel": mel.item(), "spectral": spectral.item(), "norm": norm.item(), "rate": rate,
            "pitch": sum(tracking) / max(1, len(tracking)), "skipped": float(not applied),
        }

    def pitch_step(self, rate: float) -> float:
        """One update of the pitch predictor on crops of its own; its loss."""
        crops, predictor = self.crops(self.training.pitch_crop_frames), self.vocoder.pitch_predictor
        with devices.autocast(self.device, self.dtype):
            loss = predictor.loss(self.roughened(crops.mel), crops.hertz)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(predictor.parameters(), self.training.pitch_clip)
        runs.apply(self.pitch_optimizer, norm, rate)
        return loss.item()

    def roughened(self, mel: Tensor) -> Tensor:
        """Half of the rows blurred along time and with noise added, as a flow's mels are."""
        rows = len(mel) // 2
        blurred = F.avg_pool1d(mel[:rows], 3, 1, 1, count_include_pad=False)
        noise = torch.randn(blurred.shape, generator=self.generator).to(mel.device)
        return torch.cat((blurred + self.training.pitch_noise * noise, mel[rows:]))

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """The running mean on held-out rows: log-mel L1, voicing errors, pitch error in cents."""
        distance, wrong, cents = [], [], []
        self.vocoder.eval()
        with self.average.in_place():
            for one in self.held_out:
                mel = one.mel[None].to(self.device)
                hertz = self.vocoder.pitch_predictor.pitch(mel)[0].cpu()
                made = whole_wave(self.vocoder, mel, torch.Generator().manual_seed(1))[0].cpu()
                distance.append((prompt_mel(made)[0].T - one.mel).abs().mean())
                wrong.append(((hertz > 0) != (one.hertz > 0)).float().mean())
                both = (hertz > 0) & (one.hertz > 0)
                cents.append(1200 * torch.log2(hertz[both] / one.hertz[both]).abs())
        self.vocoder.train()
        return {
            "held_out_mel": float(torch.stack(distance).mean()),
            "voicing_errors": float(torch.stack(wrong).mean()),
            "cents": float(torch.cat(cents).median()),
        } if self.held_out else {}

    def export(self) -> None:
        """Write the running mean in half precision, and its sizes as YAML."""
        output = Path(self.training.output)
        with self.average.in_place():
            halves = {name: part.half() for name, part in self.vocoder.state_dict().items()}
            weights.write_safetensors_file(output / VOCODER_FILE, halves)
        text = yaml.safe_dump({"vocoder": "nsf_vocos", "nsf_vocos": asdict(self.training.vocoder)})
        (output / "vocoder.yaml").write_text(text, encoding="utf-8")


def wave_losses(made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Log-mel L1 up to Nyquist; spectral convergence and log-magnitude L1, the mean over windows.

    made, true: (rows, samples).
    """
    spectral = torch.zeros((), device=made.device)
    mel = torch.zeros((), device=made.device)
    for size in RESOLUTIONS:
        one, other = (_magnitude(wave, size) for wave in (made, true))
        convergence = (one - other).norm() / other.norm()
        spectral = spectral + convergence + (one.log() - other.log()).abs().mean()
        if size == 1024:
            basis = mel_bank(highest_hz=NYQUIST_HZ).to(made.device)
            levels = [(each @ basis).clamp(min=1e-5).log() for each in (one, other)]
            mel = F.l1_loss(levels[0], levels[1])
    return mel, spectral / len(RESOLUTIONS)


def _magnitude(wave: Tensor, size: int) -> Tensor:
    """(rows, samples) -> (rows, frames, bins)."""
    window = torch.hann_window(size, device=wave.device)
    bins = torch.fft.rfft(wave.float().unfold(1, size, size // 4) * window, dim=2)
    return (bins.real.square() + bins.imag.square()).clamp(min=LEAST_POWER).sqrt()


def train(training: VocoderTraining) -> Path:
    """Train to the limit. Returns the exported weights."""
    return runs.run(lambda: VocoderTrainer(training, read(training)), training,
                    Path(training.output) / VOCODER_FILE)  # fmt: skip


main = runs.door(__doc__, VocoderTraining, train)


if __name__ == "__main__":
    sys.exit(main())
