"""The sizes of a model from its YAML: ours, or upstream's with the config.json of its LLM."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.models.echat import EChatSettings
from osum_echat.settings import no_misspelt, parse, read_mapping

SETTINGS_FILE = "model.yaml"
COPY = "copy the model again"
LLM_FILES = ("llm_config.json", "llm/config.json")  # beside upstream's YAML
UPSTREAM_KEY = "encoder_conf"  # only upstream's YAML has it
KEYS = (                            # of our YAML, whoever reads them
    "encoder", "adapter", "llm", "speech_codes", "lora", "ctc", "base", "tokenizer", "cpu_dtype",
    "thinking", "template", "sampling", "text_loop", "ctc_weight", "hearing", "recognizer",
    "safety", "talker", "style", "g2p",
)  # fmt: skip
# What our network does as the published one; any other value in upstream's YAML is refused.
UPSTREAM_CHOICES: dict[str, tuple[object, ...]] = {
    "adapter_type": ("osum_echat",),
    "downsample_rate": (4,),
    "encoder_conf.input_layer": ("conv1d2",),
    "encoder_conf.pos_enc_layer_type": ("abs_pos_whisper",),
    "encoder_conf.activation_type": ("gelu",),
    "encoder_conf.key_bias": (False,),
    "encoder_conf.normalize_before": (True,),
}


def read_settings(source: Path) -> EChatSettings:
    """The sizes in a model.yaml (or the directory that holds it), ours or upstream's.

    Upstream's has no LLM settings: the config.json of the LLM beside it gives them. Further keys of
    ours are left to who reads them. Raises CheckpointError for what is missing or wrong.
    """
    path = source / SETTINGS_FILE if source.is_dir() else source
    raw = read_mapping(path, CheckpointError, COPY)
    try:
        if UPSTREAM_KEY in raw:
            return upstream_settings(raw, read_llm_config(llm_config_file(path, raw)))
        return our_settings(raw)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not the settings of a model ({type(error).__name__}: {error}); "
            "see conf/osum_echat/model.yaml"
        ) from error


def our_settings(raw: Mapping[str, Any]) -> EChatSettings:
    """Settings from our own YAML."""
    for key in ("encoder", "adapter", "llm"):
        if not isinstance(raw.get(key), dict):
            raise ConfigError(f"{key}: missing; it holds the sizes of the {key}")
    no_misspelt(raw, KEYS)
    for part in ("encoder", "adapter", "lora", "ctc"):
        for key, value in (raw.get(part) or {}).items():
            if type(value) is int and value < 1 and key != "dropout":
                raise ConfigError(f"{part}.{key}: {value}, need 1 or more")
    sizes = {item.name: raw[item.name] for item in fields(EChatSettings) if item.name in raw}
    return parse(EChatSettings, sizes, "")


def upstream_settings(raw: Mapping[str, Any], llm: Mapping[str, Any]) -> EChatSettings:
    """Settings from upstream's YAML; its adapter has fixed sizes."""
    encoder = raw[UPSTREAM_KEY]
    for where, known in UPSTREAM_CHOICES.items():
        part, _, key = where.rpartition(".")
        value = (raw[part] if part else raw).get(key, known[0])
        if value not in known:
            raise ConfigError(f"{where} {value!r}: only {known[0]!r} can be used")
    found = {
        "mels": raw["input_dim"], "width": encoder["output_size"],
        "heads": encoder["attention_heads"], "units": encoder["linear_units"],
        "blocks": encoder["num_blocks"], "dropout": encoder["dropout_rate"],
    }  # fmt: skip
    lora = {key: raw[f"lora_{key}"] for key in ("rank", "alpha", "dropout") if f"lora_{key}" in raw}
    return our_settings({"encoder": found, "adapter": {}, "llm": llm, "lora": lora,
                         "speech_codes": raw["speech_token_num"] - 1})  # fmt: skip


def as_plain(settings: EChatSettings) -> dict[str, Any]:
    """Settings as `our_settings` reads them: plain values for YAML."""
    raw = asdict(settings) | {"llm": dict(settings.llm)}
    return {name: part for name, part in raw.items() if part is not None}


def llm_config_file(path: Path, raw: Mapping[str, Any]) -> Path:
    """Where the config.json of the LLM lies: beside upstream's YAML, or where its llm_path says."""
    places = [path.parent / name for name in LLM_FILES]
    named = raw.get("llm_path")
    if isinstance(named, str):
        places += [path.parent / named / "config.json", Path(named) / "config.json"]
    return next((place for place in places if place.is_file()), places[0])


def read_llm_config(path: Path) -> dict[str, Any]:
    """The config.json of a Qwen2 or Qwen3. Raises CheckpointError."""
    return read_mapping(path, CheckpointError, "put the config.json of the LLM there")
