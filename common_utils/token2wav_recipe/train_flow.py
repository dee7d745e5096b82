"""Train the flow of token to wav.

python -m common_utils.token2wav_recipe.train_flow CONFIG.yaml [key=value ...]
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor, nn

from common_utils.token2wav_recipe import runs
from common_utils.token2wav_recipe.runs import LimitSettings, Trainer, Training, VoiceRow
from osum_echat import device as devices
from osum_echat import logs, weights
from osum_echat.errors import ConfigError, DataError
from osum_echat.settings import check_numbers
from osum_echat.token2wav import voice
from osum_echat.token2wav.flow import Flow, FlowLoss, FlowSettings, draw, frames_for
from osum_echat.training.scheduler import ScheduleSettings

LOG = logs.logger(__name__)
FLOW_FILE, SIZES_FILE = "flow.safetensors", "flow.yaml"
HELD_OUT_SEED = 1
MOST_APART_S = 0.5                  # speech tokens and sound of a row: else they are of another


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowTraining(Training):
    """One training of a flow. Rows of the raw lists in `data`: `wav` and `extra.speech_token`."""

    data: tuple[str, ...]
    flow: FlowSettings = field(default_factory=FlowSettings)
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(
        kind="cosine", rate=1e-3, warmup_steps=300, min_rate=1e-5))  # fmt: skip
    limits: LimitSettings = field(default_factory=lambda: LimitSettings(minutes=60))
    batch_tokens: int = 1200            # in a step: 16 crops of 3 s
    crop_tokens: tuple[int, ...] = (75,)    # lengths of crops, one drawn for each step
    mu_weight: float = 1.0              # of L1(mu, mel), beside the published loss
    drop: float = 0.2                   # rows without condition, for guidance
    prefix: float = 0.5                 # rows with known first frames
    warp_times: bool = False            # draw times on a quarter cosine
    clip: float = 1.0
    weight_decay: float = 0.01
    average: float = 0.999
    held_out_tokens: int = 1200         # the end of the data, scored at every save
    voices: dict[str, str] = field(default_factory=dict)    # voice files by the rows' `voice`

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        check_numbers(self, "flow training", "held_out_tokens clip weight_decay mu_weight", 0)
        check_numbers(self, "flow training", "drop prefix", 0, 1)
        crops = self.crop_tokens or (0,)
        if not self.data or not 1 <= min(crops) <= max(crops) <= self.batch_tokens:
            raise ConfigError(
                f"flow training: data {self.data}, crop_tokens {self.crop_tokens}: neither may be "
                f"empty, and batch_tokens {self.batch_tokens} must hold the longest crop"
            )


class Crops(NamedTuple):
    """A batch. tokens (rows, tokens), mel (rows, frames, 80), speaker (rows, numbers)."""

    tokens: Tensor
    mel: Tensor
    speaker: Tensor


@dataclass(frozen=True, slots=True)
class Recordings:
    """All utterances end to end on one time line, so that a crop is always full.

    tokens: (tokens,); mel: (frames, 80) half precision, frame by frame with the tokens; starts:
    (rows,) first token of each row; speakers: (rows, numbers).
    """

    tokens: Tensor
    mel: Tensor
    starts: Tensor
    speakers: Tensor
    tokens_per_s: int

    def batch(self, starts: Sequence[int], length: int) -> Crops:
        """A crop of `length` tokens from each of these tokens on."""
        frames = frames_for(length, self.tokens_per_s)
        firsts = [frames_for(start, self.tokens_per_s) for start in starts]
        middles = torch.tensor([start + length // 2 for start in starts])
        rows = torch.searchsorted(self.starts, middles, right=True) - 1
        return Crops(
            torch.stack([self.tokens[start : start + length] for start in starts]),
            torch.stack([self.mel[first : first + frames].float() for first in firsts]),
            self.speakers[rows],
        )


def speech_tokens(row: VoiceRow) -> tuple[int, ...]:
    """The speech tokens of a row of a raw list. Raises DataError where it has none."""
    if not row.tokens:
        raise DataError(f"{row.where}: no extra.speech_token; extract them first")
    return row.tokens


def record(training: FlowTraining) -> Recordings:
    """Read every wav once, ordered by voice: its mel fitted to its tokens, its speaker vector."""
    rate, codes = training.flow.tokens_per_s, training.flow.codes
    known = {name: voice.VoicePrompt.load(path).speaker for name, path in training.voices.items()}
    known = known or defaultdict(partial(torch.zeros, 1, training.flow.speaker_width))
    tokens: list[int] = []
    mels, starts, speakers = [], [], []
    ordered = sorted(runs.read_lists(training.data), key=lambda row: row.voice or "")
    coded = [(row, speech_tokens(row)) for row in ordered]
    for row, ids in logs.progress(coded, "mel"):
        if max(ids) >= codes:
            raise DataError(f"{row.where}: its speech tokens must be ids from 0 to {codes - 1}")
        samples = row.load(voice.SAMPLE_RATE_HZ)
        told_s, heard_s = len(ids) / rate, len(samples) / voice.SAMPLE_RATE_HZ
        if abs(told_s - heard_s) > MOST_APART_S:
            raise DataError(f"{row.where}: {told_s:.2f} s of speech tokens for {heard_s:.2f} s of "
                            "sound; extract them again")  # fmt: skip
        starts.append(len(tokens))
        first = frames_for(len(tokens), rate)
        tokens.extend(ids)
        mels.append(fit(voice.prompt_mel(samples)[0], frames_for(len(tokens), rate) - first).half())
        if training.voices and row.voice not in known:
            raise DataError(f"{row.where}: voice {row.voice!r} is none of {', '.join(known)}")
        speakers.append(known[str(row.voice)])
    LOG.info("%d recordings, %.1f min", len(starts), len(tokens) / rate / 60)
    return Recordings(
        torch.tensor(tokens), torch.cat(mels), torch.tensor(starts), torch.cat(speakers), rate
    )


def fit(mel: Tensor, frames: int) -> Tensor:
    """Cut (frames, 80), or repeat its last frame, until there are `frames`."""
    lacking = frames - len(mel)
    return mel[:frames] if lacking <= 0 else torch.cat((mel, mel[-1:].expand(lacking, -1)))


class FlowTrainer(Trainer):
    """Crops of the recordings to the flow's loss."""

    def __init__(self, training: FlowTraining, recordings: Recordings) -> None:
        self.training, self.recordings = training, recordings
        torch.manual_seed(training.seed)
        self.flow = Flow(training.flow)
        if not recordings.speakers.any():
            # Without vectors the layer never trains; as drawn it would disturb every later voice.
            nn.init.zeros_(self.flow.spk_embed_affine_layer.weight)
        super().__init__(training, "flow", self.flow)
        self.parts["optimizer"] = self.optimizer = torch.optim.AdamW(
            self.flow.parameters(), training.schedule.rate, fused=True,
            weight_decay=training.weight_decay,
        )  # fmt: skip
        self.usable = len(recordings.tokens) - training.held_out_tokens
        if self.usable < max(training.crop_tokens):
            raise DataError(
                f"{len(recordings.tokens)} speech tokens in all: too few for held_out_tokens "
                f"{training.held_out_tokens} and crops of {max(training.crop_tokens)}"
            )

    def loss(self, crops: Crops, generator: torch.Generator) -> FlowLoss:
        """Both losses of a batch, in the training's precision."""
        rows, frames, _ = crops.mel.shape
        training = self.training
        draws = draw(
            torch.full((rows,), frames), frames, generator,
            drop=training.drop, prefix=training.prefix, warp=training.warp_times,
        )
        tokens, mel, speaker = (part.to(self.device) for part in crops)
        draws = type(draws)(*(part.to(self.device) for part in draws))
        with devices.autocast(self.device, self.dtype):
            return self.flow.loss(tokens, mel, speaker, draws)

    def step(self) -> dict[str, float]:
        """One optimizer step on fresh crops."""
        training = self.training
        length = training.crop_tokens[self.draw(len(training.crop_tokens))]
        starts = torch.randint(
            self.usable - length + 1, (training.batch_tokens // length,), generator=self.generator
        )
        loss = self.loss(self.recordings.batch(starts.tolist(), length), self.generator)
        (loss.matching + training.mu_weight * loss.mu).backward()
        norm = nn.utils.clip_grad_norm_(self.flow.parameters(), training.clip)
        rate = self.rate()
        applied = runs.apply(self.optimizer, norm, rate)
        if applied:
            self.average.update()
        self.steps += 1
        return {
            "matching": loss.matching.item(), "mu": loss.mu.item(), "norm": norm.item(),
            "rate": rate, "skipped": float(not applied),
        }

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Losses of the running mean on the held-out end, always with the same draws."""
        length = min(self.training.crop_tokens)
        total = len(self.recordings.tokens)
        starts = range(self.usable, total - length + 1, length)
        if not starts:
            return {}
        self.flow.eval()
        with self.average.in_place():
            generator = torch.Generator().manual_seed(HELD_OUT_SEED)
            loss = self.loss(self.recordings.batch(starts, length), generator)
        self.flow.train()
        return {"held_out_matching": float(loss.matching), "held_out_mu": float(loss.mu)}

    def export(self) -> None:
        """Write the running mean as `flow.safetensors`, and its sizes as `flow.yaml`."""
        output = Path(self.training.output)
        with self.average.in_place():
            weights.write_safetensors_file(output / FLOW_FILE, self.flow.state_dict())
        text = yaml.safe_dump(json.loads(json.dumps({"flow": asdict(self.training.flow)})))
        (output / SIZES_FILE).write_text(text, encoding="utf-8")


def train(training: FlowTraining) -> Path:
    """Train to the limit, going on from the newest checkpoint. Returns the exported weights."""
    return runs.run(lambda: FlowTrainer(training, record(training)), training,
                    Path(training.output) / FLOW_FILE)  # fmt: skip


main = runs.door(__doc__, FlowTraining, train)


if __name__ == "__main__":
    sys.exit(main())
