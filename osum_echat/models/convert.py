"""Converting a model: to a directory of ours, a published file, or a stock LLM directory.

Weights keep their bits: nothing is rounded, but for LoRA layers, which are merged. What the
published layout holds beside the model (position tables, a norm that is never applied) goes into a
file of its own beside ours, so that the way back gives every key again.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, deepspeed_directory, llm_export, lora, names, pretrained
from osum_echat.models import stored as storage
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.layers import interleaved_sinusoid, split_sinusoid
from osum_echat.models.settings import UPSTREAM_KEY, read_settings
from osum_echat.models.stored import Stored

KINDS = ("ours", "upstream", "hf")
EXTRAS_FILE = "upstream_only.safetensors"
ENCODER_TABLE, ADAPTER_TABLE = "encoder.embed.pos_enc.pe", "adapter.transformer.embed.pos_enc.pe"
ENCODER_POSITIONS, ADAPTER_POSITIONS = 30_000, 5_000  # rows of upstream's tables
UNUSED_NORM = "ln_speech."
EXTRAS = (ENCODER_TABLE, ADAPTER_TABLE, f"{UNUSED_NORM}weight", f"{UNUSED_NORM}bias")
NOTES = ("thinking", "template", "sampling")  # keys of model.yaml that the assistant reads
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "prompts.yaml",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one key. `became` is empty for one that was left out."""

    name: str
    became: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    note: str = ""

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") if self.dtype else ""
        parts = (self.name, "->", self.became or "left out", f"{list(self.shape)}", kind, self.note)
        return "  ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Opened:
    """A model to convert: its weights under our names, and what else its files hold."""

    found: pretrained.Source
    settings: EChatSettings
    weights: dict[str, Stored]
    extras: dict[str, Stored]
    lines: list[Line]


def convert(
    place: str | Path, target: Path, kind: str, config: str | Path | None = None
) -> list[Line]:
    """Convert a model; returns what became of every key.

    place: anything that checkpoint.load takes; target: a .pt for upstream, else a new directory;
    kind: ours, upstream or hf; config: the settings, None: those beside the weights. No tokenizer
    is needed; one that lies beside the weights is copied. Raises CheckpointError.
    """
    if kind not in KINDS:
        raise CheckpointError(f"--to {kind!r}: choose one of {', '.join(KINDS)}")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; give another place or remove it")
    if kind == "upstream" and target.suffix != ".pt":
        raise CheckpointError(f"{target}: a published model is one file; give a name in .pt")
    opened = open_model(pretrained.find(place, config))
    if kind == "upstream":
        return [*opened.lines, *_to_upstream(opened, target)]
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    written = _to_ours(opened, part) if kind == "ours" else _to_hf(opened, part)
    _copy_small_files(opened.found, part)
    part.rename(target)
    return [*opened.lines, *written]


def open_model(found: pretrained.Source) -> Opened:
    """Open and check all weights of a model. Raises CheckpointError listing what does not fit."""
    settings = read_settings(found.settings)
    raw = checkpoint.open_weights(found.weights)
    beside = found.home / EXTRAS_FILE
    extras = storage.safetensors_file(beside) if beside.is_file() else {}
    extras |= {names.our_name(name): value for name, value in raw.items()
               if names.our_name(name) in EXTRAS}  # fmt: skip
    weights = names.named_as_ours(raw, settings.tied)
    if lora.is_trained_with(weights):
        weights = lora.merged(weights, settings.lora or lora.LoraSettings())
    settings = replace(settings, lora=None)
    with torch.device("meta"):
        expected = checkpoint.own_weights(EChatModel(settings))
    checkpoint.check(found.weights, expected, weights)
    return Opened(found, settings, {name: weights[name] for name in expected}, extras,
                  list(_read_lines(raw, weights)))  # fmt: skip


def _read_lines(raw: Mapping[str, Stored], weights: Mapping[str, Stored]) -> Iterable[Line]:
    """One line for each key of the source."""
    for name, value in raw.items():
        ours = names.our_name(name)
        reason = names.why_ignored(ours)
        if reason is not None:
            kept = ours if ours in EXTRAS else ""
            yield Line(name, kept, value.shape, value.dtype, f"not read: {reason}")
        elif ours in weights:
            yield Line(name, ours, value.shape, value.dtype)
        elif ours in names.TEXT_TABLE_ALIASES:
            yield Line(name, names.TEXT_TABLE, value.shape, value.dtype, "another name of it")
        else:
            merged = ours.partition(".lora_")[0].removesuffix(".base_layer.weight")
            yield Line(name, f"{merged}.weight", value.shape, value.dtype, "LoRA, merged")


def _to_ours(opened: Opened, directory: Path) -> list[Line]:
    """model.safetensors (or several, with an index), model.yaml, and upstream's extras."""
    storage.write_safetensors(directory, opened.weights)
    if opened.extras:
        storage.write_safetensors_file(directory / EXTRAS_FILE, opened.extras)
    raw = opened.found.settings_yaml()
    notes = {key: raw[key] for key in NOTES if key in raw}
    if UPSTREAM_KEY in raw:
        notes["thinking"] = "either"
    checkpoint.write_settings(directory, opened.settings, notes)
    return []


def _to_upstream(opened: Opened, path: Path) -> list[Line]:
    """A .pt with every published key, all names of the text table among them."""
    tied = opened.settings.tied
    computed = {
        name: value for name, value in _computed(opened).items() if name not in opened.extras
    }
    extras = {name: opened.extras.get(name, computed.get(name)) for name in EXTRAS}
    everything = opened.weights | {name: one for name, one in extras.items() if one is not None}
    named = [
        ([names.published_name(alias) for alias in names.aliases(name, tied)], value)
        for name, value in everything.items()
    ]
    storage.write_torch_file(path, named)
    return [
        *(Line(ours, there, value.shape, value.dtype)
          for (theirs, value), ours in zip(named, everything, strict=True) for there in theirs),
        *(Line("", names.published_name(name), value.shape, value.dtype, "made: upstream has it")
          for name, value in computed.items()),
    ]  # fmt: skip


def _computed(opened: Opened) -> dict[str, Stored]:
    """What upstream's network holds beside ours: position tables and a norm that does nothing."""
    width = opened.settings.encoder.width
    return {
        ENCODER_TABLE: Stored.of(split_sinusoid(ENCODER_POSITIONS, width)[None]),
        ADAPTER_TABLE: Stored.of(interleaved_sinusoid(ADAPTER_POSITIONS, width)[None]),
        f"{UNUSED_NORM}weight": Stored.of(torch.ones(width)),
        f"{UNUSED_NORM}bias": Stored.of(torch.zeros(width)),
    }


def _to_hf(opened: Opened, directory: Path) -> list[Line]:
    """The LLM alone, with the speech ids appended to its vocabulary."""
    written = llm_export.write(directory, opened.weights, opened.settings)
    used = {name for names_ in written.values() for name in names_}
    left = [Line(name, "", value.shape, value.dtype, "not of the LLM")
            for name, value in opened.weights.items() if name not in used]  # fmt: skip
    return [
        *(Line(name, there, opened.weights[name].shape, opened.weights[name].dtype)
          for there, parts in written.items() for name in parts),
        *left,
    ]  # fmt: skip


def _copy_small_files(found: pretrained.Source, directory: Path) -> None:
    """Tokenizer and prompts that lie beside the weights or settings."""
    for home in (found.settings.parent, found.home, found.settings.parent / "llm"):
        for name in COPIED:
            if (home / name).is_file():
                shutil.copyfile(home / name, directory / name)


def collect(directory: Path, target: Path, full_precision: bool = False) -> list[Line]:
    """One file from a DeepSpeed directory, under the names that are there; safetensors or .pt.

    full_precision: the optimizer's float32 weights instead of those the model computed with.
    """
    if target.exists():
        raise CheckpointError(f"{target}: is there already; give another place or remove it")
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give what DeepSpeed saved")
    weights = deepspeed_directory.read(directory, full_precision)
    if target.suffix == ".safetensors":
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.write_safetensors_file(target, weights)
    else:
        storage.write_torch_file(target, (([name], value) for name, value in weights.items()))
    return [Line(name, name, value.shape, value.dtype) for name, value in weights.items()]
