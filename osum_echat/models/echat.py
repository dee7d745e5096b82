"""The dialogue model: a batch of rows to embeddings, hidden states, two heads and the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from osum_echat.errors import ConfigError, DataError
from osum_echat.models import attention, ctc
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.encoder import Adapter, AdapterSettings, Encoder, EncoderSettings, padded
from osum_echat.models.encoder_cache import EncoderCache
from osum_echat.models.lora import LoraSettings, add_layers
from osum_echat.models.loss import LossReport, by_task, cross_entropy
from osum_echat.sequence import IGNORED, Batch
from osum_echat.weights import LONGEST_REASON

MARKS = 3  # rows of the speech table beyond the codes: edge, audio begin, audio end
LLM_KINDS = {"qwen2": "Qwen2", "qwen3": "Qwen3"}  # model_type -> the stock classes
SILENCE_FRAMES = 16  # of the clip that a batch without clips may have to encode
LLM_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
LEAST_SHARED = 24  # tokens: a shorter common start is not worth a pass of its own
WINDOWS_TOGETHER = 16  # of up to 30 s, elsewhere
CLIPS_TOGETHER = 4  # on a CPU; of like length, so that little of the work goes into padding
FRAMES_PER_STEP = 8  # mel frames (10 ms) that become one step of the adapter
# Multiples of FRAMES_PER_STEP.
LONGEST_FRAMES = 3000  # 30 s: what Whisper's encoder was trained on, and OSUM-EChat's clips
MARGIN_FRAMES = 200  # 2 s that a window holds beyond what is kept of it


@dataclass(frozen=True, slots=True)
class EChatSettings:
    """All sizes of the model; `llm` is the config.json of a Qwen2 or Qwen3.

    lora: of the LLM's LoRA layers; None: it has none. ctc: what its CTC spells with; None: with
    the whole text table.
    """

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    llm: dict[str, Any] = field(default_factory=dict)
    speech_codes: int = 4096
    lora: LoraSettings | None = None
    ctc: CtcSettings | None = None

    def __post_init__(self) -> None:
        kind = self.llm.get("model_type", "qwen2")
        if kind not in LLM_KINDS:
            raise ConfigError(f"llm.model_type {kind!r}: only {', '.join(LLM_KINDS)} can be used")
        if self.speech_codes < 1:
            raise ConfigError(f"speech_codes {self.speech_codes}: need 1 or more")
        for name in LLM_SIZES:
            value = self.llm.get(name, 1)
            if type(value) is not int or value < 1:
                raise ConfigError(f"llm.{name} {value!r}: need a whole number, 1 or more")
        if not isinstance(self.tied, bool):
            raise ConfigError(f"llm.tie_word_embeddings {self.tied!r}: write true or false")

    @property
    def tied(self) -> bool:
        """Whether text table and text head are one, as in the smaller Qwen models (up to 4B)."""
        return self.llm.get("tie_word_embeddings", True)


def build_llm(config: Mapping[str, Any]) -> nn.Module:
    """A stock Qwen2ForCausalLM or Qwen3ForCausalLM from its config alone, with fresh weights.

    Raises ConfigError for sizes that none can have.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    kind = LLM_KINDS[config.get("model_type", "qwen2")]
    raw = {"tie_word_embeddings": True, **config, "attn_implementation": "sdpa"}
    for name in ("torch_dtype", "dtype"):
        raw.pop(name, None)
    try:
        whole = getattr(transformers, f"{kind}Config").from_dict(raw)
        return getattr(transformers, f"{kind}ForCausalLM")(whole)
    except Exception as error:      # those of transformers and its libraries have no common base
        said = " ".join(str(error).split())[:LONGEST_REASON]
        raise ConfigError(
            f"llm: no {kind} can have these sizes ({type(error).__name__}: {said}); take them from "
            "the config.json of the LLM"
        ) from error


class EChatModel(nn.Module):
    """Encoder, adapter, LLM, and a table and head for speech codes beside those for text."""

    llm: Any  # a Qwen2ForCausalLM or Qwen3ForCausalLM

    def __init__(self, settings: EChatSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder_cache: EncoderCache | None = None
        self.attends_by = "mask"
        self.speech_noise = 0.0  # in training: share of speech codes that are read as random ones
        self.runs_in: torch.dtype | None = None  # what the LLM's layers hand on; None: as embedded
        self.shares_start = False  # what rows begin with is computed once: for batches of one task
        self.text_head: nn.Module | None = None  # in the LLM's place for a few rows; see int8
        self.llm = build_llm(settings.llm)
        if settings.lora is not None:
            add_layers(self.llm, settings.lora)
        width: int = self.llm.config.hidden_size
        self.encoder = Encoder(settings.encoder)
        self.adapter = Adapter(settings.adapter, settings.encoder.width, width)
        self.speech_embedding = nn.Embedding(settings.speech_codes + MARKS, width)
        labels = len(settings.ctc.labels) if settings.ctc is not None else 0
        self.ctc_labels = nn.Embedding(labels, width) if labels else None
        self.speech_head = nn.Linear(width, settings.speech_codes + 1)
        nn.init.normal_(self.speech_embedding.weight, std=self.llm.config.initializer_range)
        nn.init.normal_(self.speech_head.weight, std=self.llm.config.initializer_range)
        nn.init.zeros_(self.speech_head.bias)

    def cache_encoder(self, limit_mb: int, vary: float = 0.0) -> None:
        """Keep what the encoder makes of clips; only for an encoder that no longer changes.

        vary: how much that is varied in training, 0 to 1.
        """
        limit_bytes = limit_mb * 2**20
        self.encoder_cache = EncoderCache(self.encoder, limit_bytes, vary) if limit_mb else None

    def add_lora(self, lora: LoraSettings) -> None:
        """Give the LLM new LoRA layers; ConfigError where it has some."""
        if self.settings.lora is not None:
            raise ConfigError("lora: the model has LoRA layers; leave out stage.lora or keep_lora")
        add_layers(self.llm, lora)
        self.settings = replace(self.settings, lora=lora)

    def attend_by(self, way: str) -> None:
        """How sequences that share a row are kept apart: one of attention.WAYS."""
        attention.use(self.llm, way)
        self.attends_by = way

    def recompute_activations(self) -> None:
        """In training, make activations again in backward instead of keeping them."""
        self.llm.activation_checkpointing_enable({"use_reentrant": False})
        self.encoder.recompute = True

    def compile_layers(self, dtype: torch.dtype | None) -> None:
        """Turn the LLM's layers into machine code when first used; dtype: of what they hand on."""
        for layer in self.llm.model.layers:
            layer.compile(dynamic=True)
        self.runs_in = dtype

    @property
    def text_rows(self) -> int:
        """Rows of the text table; joint ids from here on are speech ids."""
        return self.llm.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.speech_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.speech_head.weight.dtype

    def encode_audio(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mels: (clips, frames, mel), right-padded with zeros; lengths: (clips,) in frames.

        Returns (clips, steps, llm width) and lengths (clips,) in steps: clip_steps(frames) of each
        clip alone, because clips that share a batch are padded to an odd number of frames.
        """
        few = len(mels) <= CLIPS_TOGETHER
        if mels.device.type != "cpu" or few or self.encoder_cache is not None:
            return self._encode_together(mels, lengths)
        clips = [mel[:frames] for mel, frames in zip(mels, lengths.tolist(), strict=True)]
        return padded(_by_length(clips, CLIPS_TOGETHER, self._encode_together))

    def _encode_together(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same for clips that are worked on at one padded length."""
        if len(mels) > 1 and mels.shape[1] % 2 == 0:
            mels = functional.pad(mels, (0, 0, 0, 1))
        if self.encoder_cache is None:
            return self.adapter(*self.encoder(mels.to(self.dtype), lengths))
        return self.adapter(*self.encoder_cache(mels.to(self.dtype), lengths, self.training))

    def encode_audio_alone(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode_audio`, for use: each clip as if it were alone, one of over 30 s in windows.

        mels: (clips, frames, mel), right-padded with zeros; lengths: (clips,) in frames. Returns
        (clips, steps, llm width) and lengths (clips,) in steps.
        """
        cuts = [windows(frames) for frames in lengths.tolist()]
        clips = [
            mel[cut.start : cut.end]
            for mel, own in zip(mels, cuts, strict=True) for cut in own
        ]  # fmt: skip
        together = CLIPS_TOGETHER if self.device.type == "cpu" else WINDOWS_TOGETHER
        encoded = iter(_by_length(clips, together, lambda mels, lengths: self.adapter(
            *self.encoder(mels.to(self.dtype), lengths, alone=True)
        )))  # fmt: skip
        return padded([torch.cat([next(encoded)[cut.kept] for cut in own]) for own in cuts])

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids: (...) in joint space. Returns (..., width)."""
        text = self.llm.get_input_embeddings()
        is_speech = ids >= self.text_rows
        written = text(ids.masked_fill(is_speech, 0))
        speech = self.speech_embedding((ids - self.text_rows).clamp(min=0))
        return torch.where(is_speech[..., None], speech, written)

    def _with_noise(self, ids: Tensor) -> Tensor:
        """ids: (rows, tokens) in joint space. The same, some of the speech codes at random."""
        first, codes = self.text_rows, self.settings.speech_codes
        hit = torch.rand(ids.shape, device=ids.device) < self.speech_noise
        hit &= (ids >= first) & (ids < first + codes)
        return torch.where(hit, torch.randint_like(ids, first, first + codes), ids)

    def embed(self, batch: Batch, encoded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The rows with every clip in its place. Returns (rows, tokens, width).

        encoded: what `encode_audio` made of the clips, where the caller needs it too.
        """
        ids = self._with_noise(batch.ids) if self.training and self.speech_noise else batch.ids
        embedded = self.embed_ids(ids)
        if batch.mels is None:
            return embedded if encoded is None else embedded + 0.0 * encoded[0].sum()
        clips, lengths = encoded or self.encode_audio(batch.mels, batch.mel_lengths)
        assert lengths.tolist() == [span.length for span in batch.spans], "clips do not fit spans"
        rows = torch.tensor([span.row for span in batch.spans], device=embedded.device)
        starts = torch.tensor([span.start for span in batch.spans], device=embedded.device)
        clip, step = (
            torch.arange(clips.shape[1], device=lengths.device) < lengths[:, None]
        ).nonzero(as_tuple=True)
        placed = clips[clip, step].to(embedded.dtype)
        return embedded.index_put((rows[clip], starts[clip] + step), placed)

    def forward(self, batch: Batch, *, embedded: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm: (rows, tokens, width); packed sequences stay apart.

        embedded: (rows, tokens, width), None: the rows of the batch are embedded here.
        """
        embedded = self.embed(batch) if embedded is None else embedded
        shared = common_start(batch) if self.shares_start else 0
        return self.run(embedded, batch.segments, batch.positions, shared)

    def run(
        self, embedded: Tensor, segments: Tensor, positions: Tensor, shared: int = 0
    ) -> Tensor:
        """The LLM on embedded rows.

        embedded: (rows, tokens, width); segments: (rows, tokens), the number of the sequence within
        its row, -1 on padding; positions: (rows, tokens), from 0 in every sequence; shared: tokens
        that all rows begin with. Returns (rows, tokens, width).
        """
        embedded = embedded if self.runs_in is None else embedded.to(self.runs_in)
        if int(segments.max()) == 0:
            # One sequence a row, padded on the right: the causal order alone keeps padding out.
            if shared >= LEAST_SHARED and len(embedded) > 1:
                return self._run_shared(embedded, shared)
            columns = torch.arange(embedded.shape[1], device=embedded.device)[None]
            return self.llm.model(
                inputs_embeds=embedded, position_ids=columns, use_cache=False
            ).last_hidden_state
        apart = attention.arguments(self.attends_by, segments, embedded.dtype)
        return self.llm.model(
            inputs_embeds=embedded, position_ids=positions, use_cache=False, **apart
        ).last_hidden_state

    def _run_shared(self, embedded: Tensor, shared: int) -> Tensor:
        """As `run` for one sequence a row; the common start goes through the LLM once."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.llm.config)
        columns = torch.arange(embedded.shape[1], device=embedded.device)[None]
        first, rest = embedded[:1, :shared], embedded[:, shared:]
        start = self.llm.model(
            inputs_embeds=first, position_ids=columns[:, :shared], past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        cache.batch_repeat_interleave(len(embedded))
        end = self.llm.model(
            inputs_embeds=rest, position_ids=columns[:, shared:], past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        return torch.cat((start.expand(len(embedded), -1, -1), end), 1)

    def logits_text(self, hidden: Tensor) -> Tensor:
        """hidden: (..., width). Returns (..., text rows)."""
        return (self.text_head or self.llm.lm_head)(hidden)

    def logits_speech(self, hidden: Tensor) -> Tensor:
        """hidden: (..., width). Returns (..., speech codes + 1): codes, then the speech edge."""
        return self.speech_head(hidden)

    def ctc_log_probs(self, steps: Tensor) -> Tensor:
        """How likely each step of a clip is each class of the CTC or, last, the blank.

        steps: (..., steps, width), of `encode_audio`. Returns (..., steps, classes + 1), float32:
        see models/ctc.py. The mark before a clip stands for the blank.
        """
        begin = self.settings.speech_codes + 1
        rows = [self.llm.get_input_embeddings().weight]
        if self.settings.ctc is not None:
            rows = [rows[0][: self.settings.ctc.pieces]]
        if self.ctc_labels is not None:
            rows.append(self.ctc_labels.weight)
        rows.append(self.speech_embedding.weight[begin : begin + 1])
        return ctc.log_probs(steps, torch.cat(rows).detach())

    def ctc_loss(self, batch: Batch, encoded: tuple[Tensor, Tensor]) -> LossReport:
        """CTC of the clips whose words are known; encoded: (clips, steps, width) and lengths."""
        steps, lengths = encoded
        said = {clip: ids for clip, ids in enumerate(batch.ctc_targets) if ids}
        if not said:
            return LossReport(steps.sum() * 0.0, 0, {})
        clips = torch.tensor(list(said), device=steps.device)
        scores = self.ctc_log_probs(steps[clips])
        classes = scores.shape[-1] - 1
        if max(map(max, said.values())) >= classes:
            raise ConfigError(
                f"engine.ctc_weight: the CTC of this model spells with {classes} pieces, the "
                "tokenizer with more; set 0, or take the tokenizer of those pieces"
            )
        return ctc.ctc_loss(scores, lengths[clips], [*said.values()])

    def loss(
        self, batch: Batch, ctc_weight: float = 0.0, ctc_only: bool = False, whole: bool = False
    ) -> LossReport:
        """Next-token cross-entropy at the trained tokens, each in its own space (batch.joint).

        ctc_weight: of the CTC loss beside it; ctc_only: nothing but that, the LLM not run;
        whole: every part gets a gradient, be it zero, whatever the batch holds, in the same order:
        for processes that share gradients as they appear.
        """
        encoded = None if batch.mels is None else self.encode_audio(batch.mels, batch.mel_lengths)
        extra = self.ctc_loss(batch, encoded) if encoded is not None and ctc_weight else None
        if encoded is None and whole:
            silence = torch.zeros(1, SILENCE_FRAMES, self.settings.encoder.mels, device=self.device)
            encoded = self.encode_audio(silence, torch.tensor([SILENCE_FRAMES], device=self.device))
        if ctc_only:
            if extra is None:
                raise DataError("ctc_only: a batch without clips; take text tasks out of data")
            return extra._replace(total=ctc_weight * extra.total)
        own = self._token_loss(batch, encoded, whole)
        if extra is None:
            return own
        return LossReport(
            own.total + ctc_weight * extra.total,
            own.tokens + extra.tokens,
            {**own.by_task, **extra.by_task},
        )

    def _token_loss(
        self, batch: Batch, encoded: tuple[Tensor, Tensor] | None, whole: bool
    ) -> LossReport:
        hidden = self.forward(batch, embedded=self.embed(batch, encoded))
        rows, columns = torch.nonzero(batch.targets[:, 1:] != IGNORED, as_tuple=True)
        columns = columns + 1
        task_names, task_of = tasks_at(batch, rows, columns)
        targets, joint = batch.targets[rows, columns], batch.joint[rows, columns]
        states = hidden[rows, columns - 1]
        if not len(rows) and not whole:
            return LossReport(hidden.sum() * 0.0, 0, {})
        speech = self.speech_head
        total, losses, right = cross_entropy(
            states, targets, joint, self.llm.lm_head.weight, speech.weight, speech.bias, whole
        )
        return LossReport(total, len(losses), by_task(losses, right, task_of, task_names))


def _by_length(
    clips: Sequence[Tensor], together: int,
    encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> list[Tensor]:  # fmt: skip
    """clips: (frames, mel) each. Returns (steps, llm width) each, in the same order.

    encode: of so many clips of like length, right-padded, and their lengths; what it gives is
    right-padded too.
    """
    order = sorted(range(len(clips)), key=lambda number: len(clips[number]))
    encoded: dict[int, Tensor] = {}
    for first in range(0, len(order), together):
        group = order[first : first + together]
        steps, counts = encode(*padded([clips[number] for number in group]))
        for number, own, count in zip(group, steps, counts.tolist(), strict=True):
            encoded[number] = own[:count]
    return [encoded[number] for number in range(len(clips))]


def common_start(batch: Batch) -> int:
    """How many tokens all rows begin with, before the first clip and the first trained token."""
    same = (batch.ids == batch.ids[:1]).all(0) & (batch.targets == IGNORED).all(0)
    for span in batch.spans:
        same[span.start :] = False
    return int(same.long().cumprod(0).sum())


def tasks_at(batch: Batch, rows: Tensor, columns: Tensor) -> tuple[list[str], Tensor]:
    """The names of the tasks in a batch, and the number of each given token's task.

    rows, columns: (tokens,). Returns names and (tokens,).
    """
    names = sorted({name for row in batch.tasks for name in row})
    numbers = [torch.tensor([names.index(name) for name in row]) for row in batch.tasks]
    table = pad_sequence(numbers, batch_first=True).to(rows.device)
    return names, table[rows, batch.segments[rows, columns]]


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` to `end` are encoded; `kept` are the steps of the window that count."""

    start: int
    end: int
    kept: slice


def windows(frames: int) -> list[Window]:
    """Cut a clip; its windows' kept steps, one after another, are those of the whole clip.

    A clip of up to LONGEST_FRAMES is one window. Inside, a window begins MARGIN_FRAMES before what
    is kept of it and ends as much after it.
    """
    if frames <= LONGEST_FRAMES:
        return [Window(0, frames, slice(None))]
    found = []
    kept = 0
    while kept < frames:
        start = max(0, kept - MARGIN_FRAMES)
        end = min(start + LONGEST_FRAMES, frames)
        until = end if end == frames else end - MARGIN_FRAMES
        last = None if end == frames else (until - start) // FRAMES_PER_STEP
        found.append(Window(start, end, slice((kept - start) // FRAMES_PER_STEP, last)))
        kept = until
    return found
