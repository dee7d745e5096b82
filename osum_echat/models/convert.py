"""Converting a model: to a directory of ours, a published file, or a stock LLM directory.

Weights keep their bits: nothing is rounded, but for LoRA layers, which are merged. What the
published layout holds beside the model (position tables, a norm that is never applied) goes into a
file of its own beside ours, so that the way back gives every key again.

The stock LLM has a vocabulary that goes on with the speech ids, for other engines. Row `text rows +
s` of embedding and head is speech id s: the codes, the edge, then the two marks around audio, which
the head never says (their head rows are zero). A stock Qwen has no bias in its head, so the speech
head's bias lies in speech.safetensors, and one logits processor (PhaseMask) adds it while it opens
the half of the vocabulary whose turn it is. Prompts enter as embeddings.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.files import whole_folder, write_json
from osum_echat.models import checkpoint
from osum_echat.models.checkpoint import TEXT_HEAD, TEXT_TABLE, TEXT_TABLE_ALIASES
from osum_echat.models.echat import LLM_KINDS, MARKS, EChatSettings
from osum_echat.models.encoder import interleaved_sinusoid, split_sinusoid
from osum_echat.models.pretrained import ModelFiles
from osum_echat.models.settings import UPSTREAM_KEY, read_settings
from osum_echat.tasks import PROMPTS_FILE
from osum_echat.vocab import TOKENIZER_FILES

KINDS = ("ours", "upstream", "hf")
EXTRAS_FILE = "upstream_only.safetensors"
ENCODER_TABLE, ADAPTER_TABLE = "encoder.embed.pos_enc.pe", "adapter.transformer.embed.pos_enc.pe"
ENCODER_POSITIONS, ADAPTER_POSITIONS = 30_000, 5_000  # rows of upstream's tables
UNUSED_NORM = "ln_speech."
EXTRAS = (ENCODER_TABLE, ADAPTER_TABLE, f"{UNUSED_NORM}weight", f"{UNUSED_NORM}bias")
# Of settings; others stay.
SIZES = ("encoder", "adapter", "llm", "speech_codes", "lora", "ctc", checkpoint.BASE_KEY)
COPIED = (*TOKENIZER_FILES, PROMPTS_FILE)
CONFIG_FILE, SPEECH_FILE, BIAS_FILE = "config.json", "speech.json", "speech.safetensors"
LLM = "llm."
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"     # of the stock LLM
SPEECH_TABLE, SPEECH_HEAD, SPEECH_BIAS = (
    "speech_embedding.weight", "speech_head.weight", "speech_head.bias",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What became of one key. `became` is empty for one that was left out."""

    name: str
    became: str
    value: Tensor
    note: str = ""

    def __str__(self) -> str:
        shape, kind = list(self.value.shape), str(self.value.dtype).removeprefix("torch.")
        parts = (self.name, "->", self.became or "left out", f"{shape}", kind, self.note)
        return "  ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model to convert: its weights under our names, and what else its files hold."""

    files: ModelFiles
    settings: EChatSettings
    weights: dict[str, Tensor]
    extras: dict[str, Tensor]
    report: list[KeyReport]


def convert(
    files: ModelFiles, target: Path, kind: str, raw: Mapping[str, Tensor] | None = None
) -> list[KeyReport]:
    """Convert a model; returns what became of every key.

    target: a .pt for upstream, else a new directory; kind: ours, upstream or hf; raw: the weights,
    where `files` name none that can be read in place. No tokenizer is needed; one that lies beside
    the weights is copied. Raises CheckpointError, and InputError for what cannot be written.
    """
    if kind not in KINDS:
        raise CheckpointError(f"--to {kind!r}: choose one of {', '.join(KINDS)}")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; give another place or remove it")
    if kind == "upstream" and target.suffix != ".pt":
        raise CheckpointError(f"{target}: a published model is one file; give a name in .pt")
    model = open_model(files, raw)
    if kind == "upstream":
        return [*model.report, *_to_upstream(model, target)]
    with whole_folder(target) as part:
        written = _to_ours(model, part) if kind == "ours" else _to_hf(model, part)
        _copy_small_files(files, part)
    return [*model.report, *written]


def open_model(files: ModelFiles, raw: Mapping[str, Tensor] | None = None) -> OpenModel:
    """Open and check all weights of a model. Raises CheckpointError telling what does not fit."""
    settings = read_settings(files.settings)
    raw = checkpoint.stored_weights(files.weights) if raw is None else raw
    beside = files.home / EXTRAS_FILE
    extras = weights.read(beside) if beside.is_file() else {}
    extras |= {checkpoint.our_name(name): value for name, value in raw.items()
               if checkpoint.our_name(name) in EXTRAS}  # fmt: skip
    found = checkpoint.named_as_ours(raw, settings.tied)
    found, settings = checkpoint.without_lora(files.weights, found, settings)
    expected = checkpoint.own_weights(checkpoint.empty_model(settings, files.settings))
    weights.check(files.weights, expected, found, checkpoint.OTHER_MODEL)
    return OpenModel(files, settings, {name: found[name] for name in expected}, extras,
                     list(_read_report(raw, found)))  # fmt: skip


def _read_report(
    raw: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> Iterable[KeyReport]:
    """One line for each key of the source."""
    for name, value in raw.items():
        ours = checkpoint.our_name(name)
        reason = checkpoint.why_ignored(ours)
        became, note = ours, ""
        if reason is not None:
            became, note = ours if ours in EXTRAS else "", f"not read: {reason}"
        elif ours in found:
            pass
        elif ours in TEXT_TABLE_ALIASES:
            became, note = TEXT_TABLE, "another name of it"
        else:
            merged = ours.partition(".lora_")[0].removesuffix(".base_layer.weight")
            became, note = f"{merged}.weight", "LoRA, merged"
        yield KeyReport(name, became, value, note)


def _to_ours(model: OpenModel, directory: Path) -> list[KeyReport]:
    """model.safetensors (or several, with an index), model.yaml, and upstream's extras."""
    weights.write_safetensors(directory, model.weights)
    if model.extras:
        weights.write_safetensors_file(directory / EXTRAS_FILE, model.extras)
    raw = model.files.settings_yaml()
    away = (*SIZES, "tokenizer") if _tokenizer(model.files) else SIZES     # it is copied
    notes = {key: value for key, value in raw.items() if key not in away}
    if UPSTREAM_KEY in raw:
        notes = {"thinking": "either"}
    checkpoint.write_settings(directory, model.settings, notes)
    return []


def _to_upstream(model: OpenModel, path: Path) -> list[KeyReport]:
    """A .pt with every published key, all names of the text table among them."""
    extras = _computed(model.settings) | model.extras
    everything = model.weights | {name: extras[name] for name in EXTRAS}
    named = checkpoint.published(everything, model.settings.tied)
    weights.write_torch_file(path, named)
    placed = [KeyReport(ours, there, value)
              for (theirs, value), ours in zip(named, everything, strict=True) for there in theirs]
    made = [KeyReport("", checkpoint.published_name(name), extras[name], "made: upstream has it")
            for name in EXTRAS if name not in model.extras]  # fmt: skip
    return placed + made


def _computed(settings: EChatSettings) -> dict[str, Tensor]:
    """What upstream's network holds beside ours: position tables and a norm that does nothing."""
    width = settings.encoder.width
    return {
        ENCODER_TABLE: split_sinusoid(ENCODER_POSITIONS, width)[None],
        ADAPTER_TABLE: interleaved_sinusoid(ADAPTER_POSITIONS, width)[None],
        f"{UNUSED_NORM}weight": torch.ones(width),
        f"{UNUSED_NORM}bias": torch.zeros(width),
    }


def _copy_small_files(files: ModelFiles, directory: Path) -> None:
    """Prompts that lie beside the weights or settings, and the tokenizer wherever it is."""
    for home in (_tokenizer(files), files.settings.parent, files.home):
        for name in COPIED:
            if home is not None and (home / name).is_file():
                shutil.copyfile(home / name, directory / name)


def _tokenizer(files: ModelFiles) -> Path | None:
    """Where the tokenizer is; None where there is none, which a conversion does not need."""
    try:
        return files.tokenizer()
    except CheckpointError:
        return None


def collect(states: Path, target: Path, raw: Mapping[str, Tensor] | None = None) -> list[KeyReport]:
    """One file, .safetensors or .pt, of the weights in `states`, under the names that are there.

    raw: the weights, where they are not read from `states`. Raises CheckpointError and InputError.
    """
    if target.exists():
        raise CheckpointError(f"{target}: is there already; give another place or remove it")
    raw = weights.read(states) if raw is None else raw
    if target.suffix == ".safetensors":
        weights.write_safetensors_file(target, raw)
    else:
        weights.write_torch_file(target, [([name], value) for name, value in raw.items()])
    return [KeyReport(name, name, value) for name, value in raw.items()]


@dataclass(frozen=True, slots=True)
class PhaseMask:
    """A logits processor: text ids until the text ends, then speech ids with the head's bias.

    bias: (codes + 1,); text_end: the id that ends texts; speaks: speech follows the text;
    from_speech: the prompt ends in the first edge (text to speech). After the answer only `end` is
    left, the config's eos_token_id. Ids are joint ids of the answer so far, without the prompt.
    """

    text_rows: int
    bias: Tensor
    text_end: int
    speaks: bool = True
    from_speech: bool = False

    @classmethod
    def from_directory(
        cls, directory: Path, speaks: bool = True, from_speech: bool = False,
        text_end: int | None = None,
    ) -> "PhaseMask":  # fmt: skip
        """The mask of an exported directory; text_end: None is its eos_token_id of before.

        Raises CheckpointError.
        """
        path = directory / SPEECH_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            text_rows = int(raw["text_rows"])
            text_end = int(raw["text_end"]) if text_end is None else text_end
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); convert again") from error
        bias = weights.read(directory / BIAS_FILE)[SPEECH_BIAS]
        return cls(text_rows, bias, text_end, speaks, from_speech)

    @property
    def edge(self) -> int:
        """The joint id of the edge of speech."""
        return self.text_rows + len(self.bias) - 1

    @property
    def end(self) -> int:
        """The joint id that is said after an answer: that of the mark after audio."""
        return self.edge + 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (batch, answered); scores: (batch, text rows + speech rows). As scores."""
        masked = torch.full_like(scores, -torch.inf)
        text, speech = slice(self.text_rows), slice(self.text_rows, self.edge + 1)
        for row, ids in enumerate(input_ids.tolist()):
            edges = ids.count(self.edge) + self.from_speech
            if not self.from_speech and self.text_end not in ids:
                masked[row, text] = scores[row, text]
            elif self.speaks and edges < 2:
                masked[row, speech] = scores[row, speech] + self.bias.to(scores)
            else:
                masked[row, self.end] = 0.0
        return masked


def _to_hf(model: OpenModel, directory: Path) -> list[KeyReport]:
    """The LLM, and what else an engine must know of its speech ids."""
    own, settings = model.weights, model.settings
    pairs = write_llm(directory, own, settings)
    weights.write_safetensors_file(directory / BIAS_FILE, {SPEECH_BIAS: own[SPEECH_BIAS]})
    write_json(directory / SPEECH_FILE, _speech(settings, len(own[TEXT_TABLE])))
    pairs.append((SPEECH_BIAS, BIAS_FILE))
    used = {name for name, _ in pairs}
    pairs += [(name, "") for name in own if name not in used]
    return [KeyReport(name, there, own[name], "" if there else "not of the LLM")
            for name, there in pairs]  # fmt: skip


def write_llm(
    directory: Path, own: Mapping[str, Tensor], settings: EChatSettings
) -> list[tuple[str, str]]:
    """The LLM alone, with the speech ids appended to its vocabulary. Returns where each key went.

    own: all weights under our names, LoRA layers merged.
    """
    rows = len(own[TEXT_TABLE]) + settings.speech_codes + MARKS
    head = TEXT_TABLE if settings.tied else TEXT_HEAD
    places = {name: name.removeprefix(LLM) for name in own
              if name.startswith(LLM) and name not in TEXT_TABLE_ALIASES}  # fmt: skip
    made = {there: own[name] for name, there in places.items()}
    made[TABLE] = _with_speech(own[TEXT_TABLE], own[SPEECH_TABLE], rows)
    made[HEAD] = _with_speech(own[head], own[SPEECH_HEAD], rows)
    weights.write_safetensors(directory, made)
    write_json(directory / CONFIG_FILE, _config(settings, rows, made[TABLE].dtype))
    return [*places.items(), (TEXT_TABLE, TABLE), (SPEECH_TABLE, TABLE), (head, HEAD),
            (SPEECH_HEAD, HEAD)]  # fmt: skip


def _with_speech(text: Tensor, speech: Tensor, rows: int) -> Tensor:
    """The text rows, the speech rows and zeros up to `rows`, in the wider of the two types."""
    dtype = torch.promote_types(text.dtype, speech.dtype)
    whole = torch.zeros(rows, text.shape[1], dtype=dtype)
    whole[: len(text)] = text
    whole[len(text) : len(text) + len(speech)] = speech
    return whole


def _config(settings: EChatSettings, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json: the LLM's own, with the longer vocabulary, untied."""
    kind = settings.llm.get("model_type", "qwen2")
    end = rows - 1
    return {
        **settings.llm,
        "architectures": [f"{LLM_KINDS[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        "pad_token_id": end,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _speech(settings: EChatSettings, text_rows: int) -> dict[str, Any]:
    """speech.json: what an engine must know of the joint ids."""
    edge = text_rows + settings.speech_codes
    return {
        "text_rows": text_rows,
        "text_end": settings.llm.get("eos_token_id"),
        "speech_codes": settings.speech_codes,
        "first_code": text_rows,
        "edge": edge,
        "audio_begin": edge + 1,
        "audio_end": edge + 2,
        "answer_end": edge + 2,
        "bias": f"{BIAS_FILE}: {SPEECH_BIAS}, one value for each id from first_code to edge",
        "rule": "ids below text_rows until text_end, then ids from first_code to edge with the "
        "bias added, until the edge was said twice (once where the prompt ends in it), then "
        "answer_end; see PhaseMask",
    }
