"""Model directories, and the key names of published files: every key accounted for, either way.

A directory holds model.safetensors (our names, tied tables once) and model.yaml (the settings, and
keys that the assistant reads). A published file is a .pt with its llm_config.json and model.yaml
beside it.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.models.adapter import AdapterSettings
from osum_echat.models.echat import EChat, EChatSettings
from osum_echat.models.encoder import EncoderSettings

WEIGHTS_FILE, SETTINGS_FILE = "model.safetensors", "model.yaml"
PUBLISHED_LLM_FILE = "llm_config.json"
TEXT_TABLE = "llm.model.embed_tokens.weight"
# The text table's other names. Where several differ, upstream keeps the last of this order.
TEXT_TABLE_ALIASES = (
    "llm.model.embed_tokens.weight",
    "llm.lm_head.weight",
    "embed_tokens.weight",
    "lm_head.weight",
)
UPSTREAM_PREFIXES = (
    ("llama_model.speech_token_emded.", "speech_embedding."),
    ("llama_model.speech_head.", "speech_head."),
    ("llama_model.", "llm."),
    ("down_sample_2.conv.", "adapter.convs."),
    ("speech_transformer.", "adapter.transformer."),
    ("speech_llama_proj.", "adapter.projection."),
    ("speech_token_emded.", "speech_embedding."),
)
# Never read: an unused norm, computed tables, caches saved by accident.
IGNORED = re.compile(r"^ln_speech\.|\.pos_enc\.pe$|^llm\._cache\.|\.rotary_emb\.inv_freq$")
EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+", re.IGNORECASE)

Settings = TypeVar("Settings", EncoderSettings, AdapterSettings)


def save(
    directory: Path,
    model: EChat,
    settings: EChatSettings | None = None,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write model.safetensors and model.yaml.

    dtype: of the stored weights, None as they are; notes: further keys for model.yaml.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to("cpu", dtype or value.dtype).contiguous()
        for name, value in model.state_dict().items()
        if name not in TEXT_TABLE_ALIASES[1:]
    }
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    raw = asdict(settings or model.settings) | dict(notes or {})
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    (directory / SETTINGS_FILE).write_text(text, encoding="utf-8")


def save_published(path: Path, model: EChat) -> None:
    """Write a .pt with the published key names, all aliases of the text table among them."""
    weights = {
        published_name(name): value.detach().cpu() for name, value in model.state_dict().items()
    }
    table = weights[published_name(TEXT_TABLE)]
    torch.save(weights | {published_name(name): table for name in TEXT_TABLE_ALIASES}, path)


def load(
    source: Path, settings: EChatSettings | None = None, dtype: torch.dtype = torch.float32
) -> EChat:
    """A model in eval mode from a directory of ours, a directory of published files, or a .pt.

    settings: None reads model.yaml beside the weights. Raises one CheckpointError that lists every
    key that is missing, unexpected or mis-shaped, or names the file that is not there.
    """
    path = weights_file(source)
    settings = settings or read_settings(path.parent)
    weights = read_weights(path)
    with torch.device("meta"):
        model = EChat(settings)
    expected = {
        name: value
        for name, value in model.state_dict().items()
        if name not in TEXT_TABLE_ALIASES[1:]
    }
    check(path, expected, weights)
    for name in expected:
        weights[name] = weights[name].to(dtype)
    model.load_state_dict(weights, strict=False, assign=True)
    model.llm.tie_weights()
    model.llm.model.rotary_emb = type(model.llm.model.rotary_emb)(model.llm.config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def check(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise one CheckpointError on all differences in names and shapes."""
    problems = [
        f"missing: {name} {list(value.shape)}"
        for name, value in expected.items()
        if name not in found
    ]
    problems += [
        f"unexpected: {name} {list(value.shape)}"
        for name, value in found.items()
        if name not in expected
    ]
    problems += [
        f"mis-shaped: {name} {list(found[name].shape)} there, {list(value.shape)} by the settings"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if problems:
        raise CheckpointError(
            f"{path}: {len(problems)} keys do not fit {SETTINGS_FILE}; use the weights "
            f"and settings of one model: {'; '.join(problems)}"
        )


def weights_file(source: Path) -> Path:
    """The file that holds the weights. Raises CheckpointError naming what is missing."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise CheckpointError(
            f"{source}: no such model directory or file; give the path of a model"
        )
    if (source / WEIGHTS_FILE).is_file():
        return source / WEIGHTS_FILE
    published = sorted(source.glob("*.pt"))
    if len(published) == 1:
        return published[0]
    raise CheckpointError(
        f"{source / WEIGHTS_FILE}: no such file"
        + (
            f", and {len(published)} .pt files to choose from: name one"
            if published
            else "; copy the model again"
        )
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights under our names, the text table once, without what is never read."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            raw = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); copy the model again"
            ) from error
    else:
        raw = read_torch_file(path)
    if not isinstance(raw, Mapping) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckpointError(f"{path}: holds no mapping of names to weights; give a state dict")
    named = {our_name(name): value for name, value in raw.items()}
    weights = {
        name: value
        for name, value in named.items()
        if not IGNORED.search(name) and name not in TEXT_TABLE_ALIASES
    }
    tables = [named[name] for name in TEXT_TABLE_ALIASES if name in named]
    return weights | ({TEXT_TABLE: tables[-1]} if tables else {})


def read_torch_file(path: Path) -> Any:
    """The content of a .pt of plain tensors; nothing in it is run."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: cannot be read: no file of torch.save; copy the model again"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as plain weights ({reason})") from error


def our_name(name: str) -> str:
    """Our name of a key of a published file; one of ours stays."""
    name = name.removeprefix("module.")
    for theirs, ours in UPSTREAM_PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def published_name(name: str) -> str:
    """The published name of one of our keys."""
    for theirs, ours in reversed(UPSTREAM_PREFIXES):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def read_settings(source: Path) -> EChatSettings:
    """The sizes in a model.yaml (or the directory that holds it), ours or a published one.

    A published one has no LLM settings: llm_config.json beside it gives them. Further keys of ours
    are left to who reads them.
    """
    path = source / SETTINGS_FILE if source.is_dir() else source
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; copy the model again") from error
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds no settings")
    if "encoder_conf" in raw:
        return published_settings(raw, read_llm_config(path.parent / PUBLISHED_LLM_FILE))
    for key in ("encoder", "adapter", "llm"):
        if not isinstance(raw.get(key), dict):
            raise ConfigError(f"{path}: {key}: missing; it holds the sizes of the {key}")
    return EChatSettings(
        sizes(EncoderSettings, raw["encoder"], f"{path}: encoder"),
        sizes(AdapterSettings, raw["adapter"], f"{path}: adapter"),
        {key: number(value) for key, value in raw["llm"].items()},
        int(raw.get("speech_codes", EChatSettings().speech_codes)),
    )


def sizes(kind: type[Settings], raw: dict[str, Any], where: str) -> Settings:
    """A settings dataclass from its part of the YAML; unknown keys are refused."""
    known = [field.name for field in fields(kind)]
    for key in raw:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}.{key}: no such setting; {hint}")
    return kind(**raw)


def number(value: Any) -> Any:
    """A float that YAML took for a string, because it has no point: 1e-6."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def read_llm_config(path: Path) -> dict[str, Any]:
    """The config.json of a Qwen2."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; put the config.json of the LLM there"
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error


def published_settings(raw: Mapping[str, Any], llm: Mapping[str, Any]) -> EChatSettings:
    """Settings from the yaml of a published checkpoint; its adapter has fixed sizes."""
    encoder = raw["encoder_conf"]
    return EChatSettings(
        EncoderSettings(
            mels=raw["input_dim"],
            width=encoder["output_size"],
            heads=encoder["attention_heads"],
            units=encoder["linear_units"],
            blocks=encoder["num_blocks"],
            dropout=encoder["dropout_rate"],
        ),
        AdapterSettings(),
        llm,
        raw["speech_token_num"] - 1,
    )
