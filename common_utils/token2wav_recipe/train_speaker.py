"""Train a small speaker encoder.

python -m common_utils.token2wav_recipe.train_speaker CONFIG [key=value ...]

It learns to tell voices apart; what it then says about a voice, 192 numbers, goes to ONNX with the
signature of the published `campplus.onnx`.
"""

import random
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common_utils.token2wav_recipe import runs
from common_utils.token2wav_recipe.onnx_file import check_installed, export
from common_utils.token2wav_recipe.runs import Trainer, Training, VoiceRow
from osum_echat import logs
from osum_echat.errors import ConfigError, DataError
from osum_echat.settings import check_numbers
from osum_echat.token2wav.voice import MELS, SPEAKER_WIDTH, speaker_features
from osum_echat.training.scheduler import ScheduleSettings

SPEAKER_FILE = "speaker.onnx"
MARGIN, SHARPNESS = 0.2, 30.0              # of the additive-margin softmax
HELD_OUT_SHARE = 10                        # every tenth row of a voice is only scored
EXAMPLE_FRAMES = 200

log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class SpeakerSettings:
    """Sizes of the encoder: convolutions with growing reach over the filter banks."""

    width: int = 256
    kernels: tuple[int, ...] = (5, 3, 3, 1)
    dilations: tuple[int, ...] = (1, 2, 3, 1)

    def __post_init__(self) -> None:
        if len(self.kernels) != len(self.dilations) or not self.kernels:
            raise ConfigError("speaker.kernels and speaker.dilations: give as many of each")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerTraining(Training):
    """One training of a speaker encoder. Rows: `wav`, and `voice` or `speaker`."""

    lists: tuple[str, ...]
    out: str | None = None                 # the ONNX file; None: speaker.onnx in `output`
    speaker: SpeakerSettings = field(default_factory=SpeakerSettings)
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(
        kind="cosine", rate=2e-3, warmup_steps=50, min_rate=1e-5))  # fmt: skip
    unnamed: str | None = None             # the voice of rows that name none; None: left out
    rows_per_voice: int = 60               # at most
    batch: int = 32
    crop_frames: int = 120
    average: float = 0.99

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        sizes = self.speaker
        reach = sum((kernel - 1) * apart for kernel, apart in
                    zip(sizes.kernels, sizes.dilations, strict=True))  # fmt: skip
        check_numbers(self, "speaker training", "batch", 1)
        check_numbers(self, "speaker training", "rows_per_voice", 2)
        check_numbers(self, "speaker training", "crop_frames", reach + 1)

    @property
    def file(self) -> Path:
        return Path(self.out or Path(self.output) / SPEAKER_FILE)


class SpeakerNet(nn.Module):
    """Filter banks to a vector: convolutions over time, then mean and deviation of the frames."""

    def __init__(self, sizes: SpeakerSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = MELS
        for kernel, dilation in zip(sizes.kernels, sizes.dilations, strict=True):
            reach = dilation * (kernel // 2)
            layers += [
                nn.Conv1d(width, sizes.width, kernel, dilation=dilation, padding=reach),
                nn.ReLU(), nn.BatchNorm1d(sizes.width),
            ]
            width = sizes.width
        self.frames = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, SPEAKER_WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        """features: (rows, frames, 80), their mean over time removed. Returns (rows, 192)."""
        hidden = self.frames(features.transpose(1, 2))
        mean = hidden.mean(2)
        spread = (hidden - mean[:, :, None]).square().mean(2).clamp(min=1e-6).sqrt()
        return self.head(torch.cat((mean, spread), 1))


@dataclass(frozen=True, slots=True)
class Voices:
    """Features of every voice's rows, each (frames, 80) in half precision."""

    names: tuple[str, ...]
    learnt: tuple[tuple[Tensor, ...], ...]
    held_out: tuple[tuple[Tensor, ...], ...]


def read(training: SpeakerTraining) -> Voices:
    """Group the rows by voice, read a share of each, and set some aside."""
    by_voice: dict[str, list[VoiceRow]] = defaultdict(list)
    for row in runs.read_lists(training.lists):
        voice = row.voice or training.unnamed
        if voice is not None:
            by_voice[voice].append(row)
    names = tuple(sorted(name for name, rows in by_voice.items() if len(rows) > 1))
    if len(names) < 2:
        raise DataError(f"{', '.join(training.lists)}: need two voices with two rows or more each")
    learnt, held_out = [], []
    for name in logs.progress(names, "reading"):
        rows = by_voice[name]
        random.Random(f"{training.seed} {name}").shuffle(rows)
        found = [speaker_features(row.load())[0].half() for row in rows[: training.rows_per_voice]]
        aside = max(1, len(found) // HELD_OUT_SHARE)
        held_out.append(tuple(found[:aside]))
        learnt.append(tuple(found[aside:]))
    log.info("%d voices, %d rows", len(names), sum(map(len, learnt)))
    return Voices(names, tuple(learnt), tuple(held_out))


class SpeakerTrainer(Trainer):
    """Crops of the voices to the loss of telling them apart, with a vector for each."""

    def __init__(self, training: SpeakerTraining, voices: Voices) -> None:
        self.training, self.voices = training, voices
        torch.manual_seed(training.seed)
        self.net = SpeakerNet(training.speaker)
        self.centres = nn.Linear(SPEAKER_WIDTH, len(voices.names), bias=False)
        self.model = nn.ModuleDict({"net": self.net, "centres": self.centres})
        super().__init__(training, "model", self.model)
        self.parts["optimizer"] = self.optimizer = torch.optim.AdamW(
            self.model.parameters(), training.schedule.rate, weight_decay=0.05
        )

    def step(self) -> dict[str, float]:
        """One step on crops of as many voices as the batch has rows."""
        names, batch = self.voices.names, self.training.batch
        chosen = torch.randint(len(names), (batch,), generator=self.generator)
        crops = torch.stack([self._crop(int(voice)) for voice in chosen]).to(self.device)
        chosen = chosen.to(self.device)
        vectors = F.normalize(self.net(crops), dim=1)
        cosines = vectors @ F.normalize(self.centres.weight, dim=1).T
        margin = MARGIN * F.one_hot(chosen, cosines.shape[1])
        loss = F.cross_entropy(SHARPNESS * (cosines - margin), chosen)
        loss.backward()
        rate = self.rate()
        runs.apply(self.optimizer, loss.detach(), rate)
        self.average.update()
        self.steps += 1
        right = (cosines.argmax(1) == chosen).float().mean()
        return {"loss": loss.item(), "right": right.item(), "rate": rate}

    def _crop(self, voice: int) -> Tensor:
        """A stretch of a random row, repeated where it is short: (crop_frames, 80)."""
        rows, frames = self.voices.learnt[voice], self.training.crop_frames
        row = rows[self.draw(len(rows))].float()
        row = row.repeat(-(-frames // len(row)), 1)
        start = self.draw(len(row) - frames + 1)
        crop = row[start : start + frames]
        return crop - crop.mean(0)

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Held-out rows whose voice's mean vector is the nearest."""
        self.model.eval()
        with self.average.in_place():
            centres = torch.stack([self._vectors(rows[:10]).mean(0) for rows in self.voices.learnt])
            right = [
                (self._vectors(rows) @ F.normalize(centres, dim=1).T).argmax(1) == voice
                for voice, rows in enumerate(self.voices.held_out)
            ]
        self.model.train()
        return {"held_out_right": float(torch.cat(right).float().mean())}

    def _vectors(self, rows: tuple[Tensor, ...]) -> Tensor:
        found = [self.net(row.float()[None].to(self.device))[0] for row in rows]
        return F.normalize(torch.stack(found), dim=1)

    def export(self) -> None:
        """Write the running mean as ONNX: features (1, frames, 80) -> (1, 192)."""
        self.model.eval()
        with self.average.in_place():
            export(
                self.net, (torch.zeros(1, EXAMPLE_FRAMES, MELS),), self.training.file,
                inputs=("feats",), output="vector", dynamic={"feats": {1: "frames"}},
            )
        self.model.train()


def train(training: SpeakerTraining) -> Path:
    """Train to the limit. Returns the ONNX file."""
    check_installed()
    return runs.run(lambda: SpeakerTrainer(training, read(training)), training, training.file)


main = runs.door(__doc__, SpeakerTraining, train)


if __name__ == "__main__":
    sys.exit(main())
