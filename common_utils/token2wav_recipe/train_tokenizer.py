"""Makes a small speech tokenizer: Whisper layers, pitch and energy, k-means; exported to ONNX.

python -m common_utils.token2wav_recipe.train_tokenizer CONFIG [key=value ...]
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from common_utils.token2wav_recipe import pitch, runs
from common_utils.token2wav_recipe.onnx_file import check_installed, export
from common_utils.token2wav_recipe.runs import VoiceRow
from osum_echat import audio
from osum_echat.errors import ConfigError, DataError
from osum_echat.files import write_jsonl
from osum_echat.logs import logger, progress
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.pretrained import encoder_settings, read_whisper
from osum_echat.settings import check_numbers
from osum_echat.weights import fill, read, write_safetensors_file

FRAMES_PER_UNIT = 4                    # 100 frames and 25 units a second
LOG_MEL_SPAN, LOG_MEL_SHIFT = 4.0, 4.0          # the log-mel is (log10 energy + 4) / 4
PITCH_HIDDEN = 128
ENERGY_FLOOR = -2.5                 # deviations of loud units: deeper silence is all one
UNITS_PER_S = 25
LATE_START_FRAMES = (40, 400)          # silence put before a clip, to see what its place does
PITCH_BATCH_UNITS = 256
PITCH_PEAK_RATE = 2e-3
FROM_WHISPER = ("embed.", "blocks.")        # names of weights

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """Sizes of the units, and how far pitch and energy count beside the phonetic features."""

    layers: int = 3                    # of the Whisper encoder
    codes: int = 1024
    phonetic: int = 64                 # dimensions kept of the last layer; their variances sum to 1
    pitch_weight: float = 0.5          # standard deviation of the pitch feature
    energy_weight: float = 0.4         # the same, among loud units

    def __post_init__(self) -> None:
        check_numbers(self, "units", "codes", 2, 4096)
        check_numbers(self, "units", "layers phonetic", 1)


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """One tokenizer: from which lists and which Whisper, to which files."""

    lists: tuple[str, ...]             # raw lists; only `wav` is read
    whisper: str                       # folder with model.bin or model.safetensors
    out: str                           # the ONNX file
    tokens: str | None = None          # also a list of the same rows with their speech tokens
    learnt: str | None = None          # also what was learnt beside the Whisper, to export again
    units: UnitSettings = field(default_factory=UnitSettings)
    position_directions: int = 8       # of the layer that tell the place in the clip: taken out
    pitch_steps: int = 3000
    iterations: int = 40
    minutes: float = 90.0              # of audio to learn from, at most
    seed: int = 7

    def __post_init__(self) -> None:
        names = "position_directions pitch_steps iterations minutes"
        check_numbers(self, "tokenizer", names, 0)


@dataclass(frozen=True, slots=True)
class Clip:
    """What one wav gives. feats: (1, mel, frames); pitch_hz: (units,), 0 where unvoiced."""

    feats: Tensor
    pitch_hz: Tensor


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


def train(settings: TokenizerSettings) -> Path:
    """Make the tokenizer from the lists. Returns the ONNX file."""
    check_installed()
    rows = runs.read_lists(settings.lists)
    model = make_units(rows, settings)
    path = Path(settings.out)
    if settings.learnt is not None:
        save_learnt(model, Path(settings.learnt))
    export_units(model, path)
    if settings.tokens is not None:
        write_tokens(rows, path, Path(settings.tokens))
    return path


def make_units(rows: Sequence[VoiceRow], settings: TokenizerSettings) -> SpeechUnits:
    """The filled tokenizer; how evenly its codes are used is logged."""
    model = on_whisper(Path(settings.whisper), settings.units)
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = random.Random(settings.seed).sample(list(rows), len(rows))
    clips = read_clips(drawn, model.mels, settings.minutes)
    with torch.no_grad():
        layers = [model.layers(clip.feats) for clip in progress(clips, "listening")]
        last = torch.cat([layer for _, layer in layers])
        model.mean.copy_(last.mean(0))
        places = start_shifts(model, clips, generator)
        model.projection.copy_(projection(last - model.mean, places, settings))
        loudness = torch.cat([model.energy(clip.feats) for clip in clips])
        loud = loudness[loudness > loudness.mean()]
        model.energy_moments.copy_(torch.stack((loud.mean(), loud.std())))
    train_pitch(model, clips, [first for first, _ in layers], settings.pitch_steps, generator)
    with torch.no_grad():
        points = torch.cat([model.features(clip.feats) for clip in progress(clips, "features")])
        model.codebook.copy_(kmeans(points, settings.units.codes, settings.iterations, generator))
        shares = torch.bincount(nearest(points, model.codebook)).double() / len(points)
        perplexity = -(shares * shares.clamp(min=1e-12).log()).sum()
        log.info("%d units; perplexity %.1f", len(points), perplexity.exp())
    return model


def on_whisper(whisper: Path, units: UnitSettings) -> SpeechUnits:
    """The layers of a Whisper, nothing learnt on them yet."""
    weights = read_whisper(whisper)
    model = SpeechUnits(encoder_settings(weights), units).eval().requires_grad_(False)
    own = {name.replace("encoders.", "blocks."): value for name, value in weights.items()}
    if len(model.blocks) < units.layers:
        raise ConfigError(f"units.layers {units.layers}: {whisper} has {len(model.blocks)}")
    if units.phonetic > len(model.mean):
        raise ConfigError(f"units.phonetic {units.phonetic}: {whisper} is {len(model.mean)} wide")
    model.load_state_dict(
        {name: value for name, value in own.items() if name in model.state_dict()}, strict=False
    )
    return model


def save_learnt(model: SpeechUnits, path: Path) -> None:
    """Write what was learnt beside the Whisper: a tenth of a megabyte in place of its weights."""
    found = {name: value for name, value in model.state_dict().items()
             if not name.startswith(FROM_WHISPER)}  # fmt: skip
    write_safetensors_file(path, found, {"units": json.dumps(asdict(model.units))})


def with_learnt(whisper: Path, path: Path) -> SpeechUnits:
    """The units that `save_learnt` kept, on the layers of the same Whisper.

    Raises DataError, CheckpointError.
    """
    learnt = read(path)
    with safe_open(path, framework="pt") as file:
        units = (file.metadata() or {}).get("units")
    if units is None:
        raise DataError(f"{path}: not what train_tokenizer keeps of units; make it again")
    model = on_whisper(whisper, UnitSettings(**json.loads(units)))
    own = {name: value for name, value in model.state_dict().items()
           if name.startswith(FROM_WHISPER)}  # fmt: skip
    fill(model, own | learnt, path)
    return model


def read_clips(rows: Sequence[VoiceRow], mels: int, minutes: float) -> list[Clip]:
    """Features and true pitch of the rows, up to so many minutes."""
    return [Clip(audio.log_mel(samples, mels).T[None], unit_pitch(samples))
            for samples in runs.loaded(rows, minutes)]  # fmt: skip


def unit_pitch(samples: Tensor) -> Tensor:
    """True pitch of each unit, the mean of its voiced hops: (units,) in Hz, 0 where unvoiced."""
    hops = pitch.track(samples.numpy(), audio.SAMPLE_RATE_HZ, audio.HOP_SAMPLES)
    hops = np.pad(hops, (0, -len(hops) % FRAMES_PER_UNIT)).reshape(-1, FRAMES_PER_UNIT)
    voiced = (hops > 0).sum(1)
    return torch.from_numpy(np.where(voiced > 1, hops.sum(1) / np.maximum(voiced, 1), 0)).float()


def start_shifts(model: SpeechUnits, clips: list[Clip], generator: torch.Generator) -> Tensor:
    """How the last layer changes when a clip starts later: (units, width)."""
    changes = []
    for clip in clips[:: max(1, len(clips) // 100)]:
        late = int(torch.randint(*LATE_START_FRAMES, (1,), generator=generator))
        late -= late % FRAMES_PER_UNIT
        moved = F.pad(clip.feats, (late, 0), value=float(clip.feats.min()))
        after = model.layers(moved)[1][late // FRAMES_PER_UNIT :]
        changes.append(after - model.layers(clip.feats)[1])
    return torch.cat(changes)


def projection(centred: Tensor, places: Tensor, settings: TokenizerSettings) -> Tensor:
    """(width, phonetic): standardised, place in the clip taken out, main directions kept."""
    scale = 1 / centred.std(0).clamp(min=1e-5)
    standard = centred * scale
    _, _, ways = torch.linalg.svd(places * scale, full_matrices=False)
    placeless = ways[: settings.position_directions]
    standard = standard - standard @ placeless.T @ placeless
    variances, directions = torch.linalg.eigh(standard.T @ standard / len(standard))
    keep = directions[:, -settings.units.phonetic :]
    keep = keep - placeless.T @ (placeless @ keep)
    total = variances[-settings.units.phonetic :].sum()
    log.info("phonetic features keep %.0f %% of the layer", 100 * total / centred.shape[1])
    return scale[:, None] * keep / total.sqrt()


def train_pitch(
    model: SpeechUnits, clips: list[Clip], first: list[Tensor], steps: int,
    generator: torch.Generator,
) -> None:
    """Fit the pitch head to the true pitch, by the voiced units."""
    stacks = torch.cat([stacked(clip.feats) for clip in clips])
    layer, hertz = torch.cat(first), torch.cat([clip.pitch_hz for clip in clips])
    voiced = hertz > 0
    if steps and voiced.sum() < 2:
        raise DataError("the lists: no voice is heard in them, so that no pitch can be learnt; "
                        "give recordings of speech, or pitch_steps=0")  # fmt: skip
    logs = hertz[voiced].log()
    height = torch.where(voiced, (hertz.clamp(min=1).log() - logs.mean()) / logs.std(), 0)
    weights = [
        part.requires_grad_()
        for module in (model.pitch_of_mel, model.pitch_of_layer, model.pitch_head)
        for part in module.parameters()
    ]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.1)
    for step in progress(range(steps), "pitch"):
        optimizer.param_groups[0]["lr"] = PITCH_PEAK_RATE * (1 - step / steps)
        drawn = torch.randint(len(layer), (PITCH_BATCH_UNITS,), generator=generator)
        hidden = model.pitch_of_mel(stacks[drawn])[:, :, 0] + model.pitch_of_layer(layer[drawn])
        guessed = model.pitch_head(F.gelu(hidden))
        wrong = (guessed[:, 1] - height[drawn]).abs() * voiced[drawn]
        loss = 2 * wrong.mean() + F.binary_cross_entropy_with_logits(
            guessed[:, 0], voiced[drawn].float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)


def stacked(feats: Tensor) -> Tensor:
    """(1, mel, frames) cut into units: (units, mel, 4)."""
    short = -feats.shape[2] % FRAMES_PER_UNIT
    padded = F.pad(feats, (0, short), mode="replicate")[0]
    return padded.unflatten(1, (-1, FRAMES_PER_UNIT)).transpose(0, 1)


def export_units(model: SpeechUnits, path: Path) -> None:
    """Write the ONNX file: feats (1, mel, frames), feats_length (1,) -> indices (1, units)."""
    example = torch.zeros(1, model.mels, 8 * UNITS_PER_S), torch.tensor([8 * UNITS_PER_S]).int()
    export(
        model, example, path, inputs=("feats", "feats_length"), output="indices",
        dynamic={"feats": {2: "frames"}, "feats_length": {}}, exact=("codebook", "projection"),
    )
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)


def write_tokens(rows: Sequence[VoiceRow], tokenizer: Path, path: Path) -> None:
    """A raw list of the rows with the tokens that the written file gives."""
    from osum_echat.token2wav.voice import SpeechTokenizer

    listen = SpeechTokenizer(tokenizer)
    write_jsonl(path, (
        dict(row.raw) | {
            "wav": str(row.wav.resolve()), "task": "<TEXT2TOKEN>",
            "extra": {"speech_token": [int(token) for token in listen(row.load())]},
        } for row in progress(rows, "tokens")
    ))  # fmt: skip


main = runs.door(__doc__, TokenizerSettings, train)


if __name__ == "__main__":
    sys.exit(main())
