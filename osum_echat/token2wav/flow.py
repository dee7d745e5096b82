"""Speech tokens to a mel: encoder, length regulator and conditional flow matching."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from osum_echat.errors import ConfigError, InputError
from osum_echat.token2wav.estimator import (
    Estimator,
    EstimatorSettings,
    Extend,
    KeyValues,
    extending,
    keeping,
)
from osum_echat.token2wav.layers import (
    Conformer,
    ConformerSettings,
    Conv,
    GroupNorm,
    Mish,
    masked,
    padding_of,
    stretch,
    within,
)
from osum_echat.token2wav.voice import HOP_SAMPLES, MELS, SAMPLE_RATE_HZ, SPEAKER_WIDTH, VoicePrompt

LONGEST_PREFIX = 0.3        # of an utterance, given as known frames in training
EDGE_TOKENS = 20            # at inference the first and the last 20 are stretched on their own
AGAIN_FRAMES = 16           # of a prepared voice's last ones, solved again with what follows them


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Sizes and constants of the flow; the defaults are those of the published 25 Hz model.

    The network sees (mel - mel_mean) / mel_scale. `temperature` scales the noise that synthesis
    starts from; `guidance` is the weight of classifier-free guidance; `spacing` above 1 crowds
    the solver's steps further at the start, which serves few steps better. `mean_start`, where it
    is not None, lets the solver start at the mean mel, with noise of so many deviations, and tells
    the speaker to the mean too (not published).
    """

    codes: int = 4096
    tokens_per_s: int = 25
    speaker_width: int = SPEAKER_WIDTH      # numbers of a speaker vector
    conformer: ConformerSettings = field(default_factory=ConformerSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    regulator_convs: int = 4
    guidance: float = 0.7
    steps: int = 10
    spacing: float = 1.0
    temperature: float = 1.0
    mean_start: float | None = None
    smallest_noise: float = 1e-6
    mel_mean: float = 0.0
    mel_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("codes", "speaker_width", "steps", "spacing", "mel_scale"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"flow.{name} {getattr(self, name)}: must be above 0")


class Draws(NamedTuple):
    """The random part of one training step, for `batch` rows."""

    times: Tensor       # (batch,) in 0..1, after the warp if any
    noise: Tensor       # (batch, frames, mel)
    known: Tensor       # (batch,) frames of the true mel given as a prefix
    kept: Tensor        # (batch,) bool: False drops all that guides


class VoiceState(NamedTuple):
    """A voice as the solver is told of it: made once, and used for every piece of a stream.

    kept: of a prepared one, its first `kept_frames` as each step of the solver saw them: they are
    not solved again.
    """

    tokens: Tensor      # (1, tokens)
    known: Tensor       # (1, frames, mel), normalised; no frames where the voice has no tokens
    speaker: Tensor     # (1, mel)
    kept: tuple[KeyValues, ...] = ()
    kept_frames: int = 0


class FlowLoss(NamedTuple):
    """matching: the published loss, of the velocity; mu: L1 of the regulator to the mel."""

    matching: Tensor
    mu: Tensor


def speaker_width(tensors: Mapping[str, Tensor], settings: FlowSettings) -> int:
    """How many numbers a speaker vector has, by a flow's weights; models differ in nothing else."""
    weight = tensors.get("spk_embed_affine_layer.weight")
    return settings.speaker_width if weight is None or weight.dim() != 2 else weight.shape[1]


def frames_for(tokens: int, tokens_per_s: int) -> int:
    """Mel frames of `tokens` speech tokens, in the published order of float arithmetic."""
    return int(tokens / tokens_per_s * SAMPLE_RATE_HZ / HOP_SAMPLES)


def solver_times(steps: int, spacing: float = 1.0) -> Tensor:
    """The times of the solver, 0 to 1 on a quarter cosine to the power `spacing`: (steps + 1,)."""
    return (1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * math.pi)) ** spacing


def draw(
    lengths: Tensor, frames: int, generator: torch.Generator, *, drop: float = 0.2,
    prefix: float = 0.5, warp: bool = False,
) -> Draws:  # fmt: skip
    """Draw times, noise, prefixes and drops on the CPU.

    lengths: (batch,) frames of each row; `prefix` is the chance of a known prefix of up to 30 %,
    `drop` the chance of an unconditional row, `warp` the cosine warp of the times.
    """
    rows = lengths.shape[0]
    times = torch.rand(rows, generator=generator)
    if warp:
        times = 1 - torch.cos(times * 0.5 * math.pi)
    longest = (lengths.cpu() * LONGEST_PREFIX).long() + 1
    known = (torch.rand(rows, generator=generator) * longest).long()
    known *= torch.rand(rows, generator=generator) < prefix
    noise = torch.randn(rows, frames, MELS, generator=generator)
    kept = torch.rand(rows, generator=generator) >= drop
    return Draws(times, noise, known, kept)


class LengthRegulator(nn.Module):
    """Names follow the published file: `model.{0,3,..}` convolutions, `model.{1,4,..}` norms."""

    def __init__(self, channels: int, convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [Conv(channels, channels, 3, padding=1), GroupNorm(1, channels), Mish()]
        self.model = nn.Sequential(*layers, Conv(channels, channels, 1))

    def forward(self, x: Tensor, alone: Tensor | None = None) -> Tensor:
        """x: (batch, frames, channels), already stretched; the same shape comes back.

        alone: (batch, frames), the frames of each row, which are worked on as if it were alone;
        None for all.
        """
        for layer in self.model:
            x = layer(x, alone) if isinstance(layer, GroupNorm) else layer(masked(x, alone))
        return masked(x, alone)


def stretch_with_edges(x: Tensor, frames: int, edge_frames: int) -> Tensor:
    """Stretch (1, tokens, width) to `frames`; the edges keep their own pace in longer rows.

    Over 40 tokens, the first and the last 20 become `edge_frames` each and the middle the rest, as
    the published model does at inference.
    """
    if x.shape[1] <= 2 * EDGE_TOKENS:
        return stretch(x, frames)
    head, middle, tail = x[:, :EDGE_TOKENS], x[:, EDGE_TOKENS:-EDGE_TOKENS], x[:, -EDGE_TOKENS:]
    middle = stretch(middle, frames - 2 * edge_frames)
    return torch.cat((stretch(head, edge_frames), middle, stretch(tail, edge_frames)), dim=1)


def stretch_in_place(x: Tensor, first: int, start: int, stop: int, pace: float) -> Tensor:
    """Stretch (1, tokens, width), a part of a longer row, to the frames `start` to `stop` of it.

    first: the number of its first token; pace: frames a token. A frame gets the same mix of the
    same two tokens whatever the part, as a linear stretch of the whole row would give it.
    """
    last = x.shape[1] - 1
    frames = torch.arange(start, stop, dtype=torch.float64)
    places = ((frames + 0.5) / pace - 0.5 - first).clamp(0, last)
    before = places.long().clamp(max=max(0, last - 1))
    share = (places - before).to(x.device, x.dtype).view(1, -1, 1)
    before = before.to(x.device)
    return torch.lerp(x[:, before], x[:, (before + 1).clamp(max=last)], share)


class Matching(nn.Module):
    """Holds the estimator under its published name and follows its velocity."""

    def __init__(self, settings: EstimatorSettings) -> None:
        super().__init__()
        self.estimator = Estimator(settings, inputs=4 * MELS, outputs=MELS)

    def solve(
        self, noise: Tensor, mu: Tensor, speaker: Tensor, known: Tensor, times: Tensor,
        guidance: float, valid: Tensor | None = None, extends: Sequence[Extend] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Euler steps from `noise`, guided, each row as if it were alone. Shapes as in
        `Estimator.forward`; times: (steps + 1,); extends: one a step; between: done before each."""
        x, alone = noise, valid is not None
        copies = 2 if guidance else 1
        if guidance:
            mu, speaker, known = (torch.cat((part, part * 0)) for part in (mu, speaker, known))
            valid = None if valid is None else torch.cat((valid, valid))
        times, steps = times.to(noise.device), len(times) - 1
        now, pace = times[0], times[1] - times[0]
        for step in range(1, steps + 1):
            between()
            both, time = x.repeat(copies, 1, 1), now.expand(len(mu))
            extend = None if extends is None else extends[step - 1]
            velocity = self.estimator(both, mu, time, speaker, known, valid, alone, extend).float()
            if guidance:
                guided, free = velocity.chunk(2)
                velocity = (1 + guidance) * guided - guidance * free
            x = x + pace * velocity
            now = now + pace
            if step < steps:
                pace = times[step + 1] - now
        return x


class Flow(nn.Module):
    """The whole of `flow.pt`: parameter names are the published ones."""

    def __init__(self, settings: FlowSettings) -> None:
        super().__init__()
        self.settings = settings
        self.input_embedding = nn.Embedding(settings.codes, settings.conformer.input_width)
        self.spk_embed_affine_layer = nn.Linear(settings.speaker_width, MELS)
        self.encoder = Conformer(settings.conformer)
        self.encoder_proj = nn.Linear(settings.conformer.width, MELS)
        self.length_regulator = LengthRegulator(MELS, settings.regulator_convs)
        self.decoder = Matching(settings.estimator)

    def speaker(self, vector: Tensor) -> Tensor:
        """(batch, speaker width) of any length -> (batch, mel)."""
        return self.spk_embed_affine_layer(F.normalize(vector, dim=1))

    def encode(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """tokens: (batch, tokens); valid: the same shape, None for all -> (batch, tokens, mel)."""
        embedded = self.input_embedding(tokens.clamp(min=0))
        if valid is not None:
            embedded = embedded * valid.unsqueeze(-1)
        return self.encoder_proj(self.encoder(embedded, valid))

    def mean(self, paced: Tensor, speaker: Tensor, valid: Tensor | None = None) -> Tensor:
        """The mean mel, normalised: (rows, frames, mel).

        paced: what `encode` gave at the mel's pace, the same shape; speaker: (rows, mel).
        """
        if self.settings.mean_start is not None:
            paced = paced + speaker[:, None]
        return self.length_regulator(paced, valid)

    def start(self, mu: Tensor, noise: Tensor) -> Tensor:
        """Where the solver starts: (rows, frames, mel) all."""
        if self.settings.mean_start is None:
            return noise
        return mu + self.settings.mean_start * noise

    def normalise(self, mel: Tensor) -> Tensor:
        return (mel - self.settings.mel_mean) / self.settings.mel_scale

    @torch.no_grad()
    def voice_state(self, voice: VoicePrompt | None) -> VoiceState:
        """What all speech in this voice has in common. Raises InputError for another model's voice.
        """
        voice = voice or VoicePrompt.absent(torch.zeros(1, self.settings.speaker_width))
        self.check_voice(voice, "voice prompt")
        device = self.input_embedding.weight.device
        tokens, mel = voice.tokens.long(), voice.mel
        known = self.normalise(mel) if tokens.shape[1] else mel[:, :0]
        speaker = self.speaker(voice.speaker.to(device))
        return VoiceState(tokens.to(device), known.to(device), speaker)

    @torch.no_grad()
    def prepared(self, voice: VoiceState, noise: Tensor) -> VoiceState:
        """The voice with its frames solved once for all speech, by the model's own steps.

        Frames of a recording hardly depend on the speech behind them, so the keys and values that
        speech attends to are made of the recording alone; only its last frames are solved again,
        since convolutions reach into them. This is close to solving it every time, not equal.
        noise: what they are solved from, (mel, prompt frames), standard normal. A voice of a few
        frames, or none, comes back as it is.
        """
        frames = voice.known.shape[1]
        keep = (frames - AGAIN_FRAMES) // 2 * 2
        if keep <= 0:
            return voice
        kept = tuple(KeyValues() for _ in range(self.settings.steps))
        mu = self.mean(stretch(self.encode(voice.tokens), frames), voice.speaker)
        self._solved(mu, noise.T[None], voice, extends=[keeping(one, frames, keep) for one in kept])
        return voice._replace(kept=kept, kept_frames=keep)

    def stretched(self, encoded: Tensor, voice: VoiceState, first: int | None) -> Tensor:
        """What `encode` gave of the prompt and a row's tokens, at the mel's pace.

        encoded: (1, prompt tokens + tokens, mel); first: None for a whole utterance, as published;
        else the number of a part's first token: each frame then has its place in the whole by time.
        Returns (1, prompt frames + frames, mel).
        """
        given, rate = voice.tokens.shape[1], self.settings.tokens_per_s
        own = encoded[:, given:]
        if first is None:
            frames, edge = frames_for(own.shape[1], rate), frames_for(EDGE_TOKENS, rate)
            parts = [stretch_with_edges(own, frames, edge)]
        else:
            start, stop = (frames_for(number, rate) for number in (first, first + own.shape[1]))
            pace = SAMPLE_RATE_HZ / HOP_SAMPLES / rate
            parts = [stretch_in_place(own, first, start, stop, pace)]
        if prompt_frames := voice.known.shape[1]:
            parts.insert(0, stretch(encoded[:, :given], prompt_frames))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def mels(
        self, rows: Sequence[Tensor], voice: VoiceState, noises: Sequence[Tensor],
        firsts: Sequence[int | None] | None = None, between: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:  # fmt: skip
        """The log-mels of utterances in a voice, solved from noise, each as if it were alone.

        rows: (tokens,) each; voice: a prepared one only for rows of one length; noises: (mel,
        prompt frames + frames) each, standard normal; firsts: the number of the first token of
        each, where it is a part of an utterance, None: all are whole; between: done between the
        solver's steps. Returns (1, mel, frames) each. Padding changes nothing but the order in
        which numbers are added. Raises InputError for no tokens, or ids out of range.
        """
        settings, prompt_frames = self.settings, voice.known.shape[1]
        if voice.kept and len(voice.kept) != settings.steps:
            raise InputError(f"a voice prepared for {len(voice.kept)} steps, not "
                             f"{settings.steps}; prepare it again")  # fmt: skip
        firsts = firsts or [None] * len(rows)
        for row in rows:
            self.check(row)
        told = [torch.cat((voice.tokens[0], row)) for row in rows]
        encoded = self.encode(pad_sequence(told, batch_first=True), padding_of(told))
        paced = [
            self.stretched(one[None, : len(row)], voice, first)[0]
            for one, row, first in zip(encoded, told, firsts, strict=True)
        ]
        valid = padding_of(paced)
        mu = self.mean(pad_sequence(paced, batch_first=True), voice.speaker, valid)
        noise = pad_sequence([one.T for one in noises], batch_first=True)
        extends = [extending(one) for one in voice.kept] or None
        solved = self._solved(mu, noise, voice, valid, extends, between)
        solved = solved[:, prompt_frames - voice.kept_frames :]
        made = (solved * settings.mel_scale + settings.mel_mean).transpose(1, 2)
        ends = [len(row) - prompt_frames for row in paced]
        return [row[None, :, :end] for row, end in zip(made, ends, strict=True)]

    def _solved(
        self, mu: Tensor, noise: Tensor, voice: VoiceState, valid: Tensor | None = None,
        extends: Sequence[Extend] | None = None, between: Callable[[], None] = lambda: None,
    ) -> Tensor:  # fmt: skip
        """The solver's mel, normalised: (rows, frames, mel), without those that the voice keeps.

        mu, noise: (rows, frames, mel), the prompt's first; valid: (rows, frames), None for all.
        """
        settings, skip = self.settings, voice.kept_frames
        known = F.pad(voice.known.to(mu.dtype), (0, 0, 0, mu.shape[1] - voice.known.shape[1]))
        start = self.start(mu, noise.to(mu.device) * settings.temperature)
        return self.decoder.solve(
            start[:, skip:], mu[:, skip:],
            voice.speaker.expand(len(mu), -1), known.expand(len(mu), -1, -1)[:, skip:],
            solver_times(settings.steps, settings.spacing), settings.guidance, valid, extends,
            between,
        )  # fmt: skip

    def check(self, tokens: Tensor) -> None:
        """Refuse (tokens,) that have no mel: none, or ids that the codebook does not hold."""
        if not tokens.numel():
            raise InputError("no speech tokens: need 1 or more")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.settings.codes:
            raise InputError(
                f"speech token {low if low < 0 else high}: the flow knows 0 to "
                f"{self.settings.codes - 1}; cut off the begin and end marks first"
            )

    def check_voice(self, voice: VoicePrompt, where: str) -> None:
        """Refuse a voice that another model measured: its tokens, or its speaker vector."""
        width = voice.speaker.shape[1]
        if width != self.settings.speaker_width:
            raise InputError(
                f"{where}: a speaker vector of {width} numbers, where this model needs "
                f"{self.settings.speaker_width}; measure the recording again with this model"
            )
        if voice.tokens.numel() and int(voice.tokens.max()) >= self.settings.codes:
            raise InputError(
                f"{where}: a voice of token {int(voice.tokens.max())}, where this model knows 0 to "
                f"{self.settings.codes - 1}; measure the recording again with this model"
            )

    def loss(
        self, tokens: Tensor, mel: Tensor, speaker: Tensor, draws: Draws, *,
        token_lengths: Tensor | None = None, mel_lengths: Tensor | None = None,
    ) -> FlowLoss:  # fmt: skip
        """Both losses of a batch of right-padded rows (lengths None: all rows full).

        tokens: (batch, tokens); mel: (batch, frames, mel) as heard, not normalised; speaker:
        (batch, speaker width). The whole padded token axis is stretched to the whole mel axis, as
        published.
        """
        rows, frames, _ = mel.shape
        target = self.normalise(mel)
        valid = None if mel_lengths is None else within(mel_lengths, frames)
        heard = None if token_lengths is None else within(token_lengths, tokens.shape[1])
        told = self.speaker(speaker)
        mu = self.mean(stretch(self.encode(tokens, heard), frames), told)
        shown = torch.arange(frames, device=mel.device) < draws.known.unsqueeze(1)
        known = target * shown.unsqueeze(-1)
        weight = target.new_ones(rows, frames) if valid is None else valid.to(target.dtype)
        if valid is not None:
            mu = mu * weight.unsqueeze(-1)
        count = weight.sum() * MELS
        mu_loss = ((mu.float() - target).abs() * weight.unsqueeze(-1)).sum() / count
        kept = draws.kept.to(target.dtype)
        # A mean that is the start is taught by L1 alone: one that moved with the loss would run to
        # the target, or away from the mel that it shall be.
        fixed = mu.detach()
        start, time = self.start(fixed, draws.noise), draws.times.view(-1, 1, 1)
        condition = mu if self.settings.mean_start is None else fixed
        least = self.settings.smallest_noise
        mixed = (1 - (1 - least) * time) * start + time * target
        velocity = self.decoder.estimator(
            mixed, condition * kept.view(-1, 1, 1), draws.times, told * kept.view(-1, 1),
            known * kept.view(-1, 1, 1), valid,
        )  # fmt: skip
        wrong = (velocity.float() - (target - (1 - least) * start)) * weight.unsqueeze(-1)
        return FlowLoss(wrong.square().sum() / count, mu_loss)
