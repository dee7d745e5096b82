"""Models on disk: key names, ours and the published ones; models written, loaded and checked.

Our directory holds model.safetensors (our names, tied tables once; several files with an index when
large) and model.yaml (the settings, and keys that the assistant reads). Every known key of a
published file has one place or is left out (facts of the published layout, 888 keys; the table of
names is in the README).

`base` in model.yaml names a public model for each part that it gives (encoder, llm): its weights
lie in a cache, not in each model's folder. Set-up puts them there once, as safetensors under the
names of that part (common_utils/small_model/base_models.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from osum_echat import logs, weights
from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.files import whole_file
from osum_echat.models import lora
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.settings import COPY, SETTINGS_FILE, as_plain, read_settings
from osum_echat.paths import PUBLISHED_SETTINGS, cache
from osum_echat.settings import parse, read_mapping
from osum_echat.weights import INDEX_FILE, WEIGHTS_FILE

LOG = logs.logger(__name__)
Value = TypeVar("Value")

# Ours, upstream's, and what upstream's training leaves beside its states.
MODEL_NAMES = (WEIGHTS_FILE, INDEX_FILE, "pytorch_model.bin")
SETTINGS_NAMES = (SETTINGS_FILE, "ct_config.yaml", "train.yaml")
DEEPSPEED_STATES = "mp_rank_00_model_states.pt"
ANY_STATES = f"*{DEEPSPEED_STATES}"     # of all weights, or of the pieces of ZeRO 3
OPTIMIZER_STATES = "*zero_pp_rank_*_optim_states.pt"
# Of our own trainings (see training/state.py) and DeepSpeed's: `latest` names the newest step.
FINISHED, CHECKPOINTS, LATEST, STATE_FILE = "final", "checkpoints", "latest", "state.pt"
DEEPSPEED = "deepspeed"         # in a checkpoint: what DeepSpeed wrote
BASE_KEY = "base"               # of model.yaml
SET_UP = "python -m common_utils.small_model.base_models"
OTHER_MODEL = (
    f"use weights and {SETTINGS_FILE} of one model (--config YAML; in a training model=YAML, or "
    "model=null for the settings of init)"
)

TEXT_TABLE, TEXT_HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
# The other names of the text table. Where several differ, upstream keeps the last of this order.
TEXT_TABLE_ALIASES = (TEXT_TABLE, TEXT_HEAD, "embed_tokens.weight", "lm_head.weight")
TABLE_NAMES, HEAD_NAMES = TEXT_TABLE_ALIASES[0::2], TEXT_TABLE_ALIASES[1::2]
UPSTREAM_PREFIXES = (
    ("llama_model.speech_token_emded.", "speech_embedding."),
    ("llama_model.speech_head.", "speech_head."),
    ("llama_model.base_model.model.", "llm."),  # of a model with LoRA layers
    ("llama_model.", "llm."),
    ("down_sample_2.conv.", "adapter.convs."),
    ("speech_transformer.", "adapter.transformer."),
    ("speech_llama_proj.", "adapter.projection."),
    ("speech_token_emded.", "speech_embedding."),
    ("speech_head.", "speech_head."),
)
# Of parallel training, of torch.compile, and of the loss that our DeepSpeed engine runs.
OWN_PARTS = "encoder|adapter|llm|speech_embedding|speech_head|ctc_labels"
WRAPPERS = re.compile(rf"^(?:module\.|_orig_mod\.|model\.(?=(?:{OWN_PARTS})\.))+")
# Never read, with the reason that a report gives.
IGNORED = (
    (re.compile(r"^ln_speech\."), "a norm that upstream never applies"),
    (re.compile(r"\.pos_enc\.pe$"), "a position table, computed here"),
    (re.compile(r"^llm\._cache\."), "a cache saved by accident"),
    (re.compile(r"\.rotary_emb\.(?:original_)?inv_freq$"), "rotary rates, computed here"),
)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """sha256: of the weights as the packages make them; from the hub they are others."""

    name: str
    sha256: str
    packages: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies that was made from the packages."""
        return cache() / f"{self.name}-{self.sha256[:12]}"

    @property
    def hub_folder(self) -> Path:
        """Where it lies that came from the hub."""
        return cache() / f"{self.name}-hub"

    def find(self, asking: object) -> Path:
        """The folder that is there. asking: whose part it is. Raises CheckpointError."""
        for folder in (self.folder, self.hub_folder):
            if (folder / WEIGHTS_FILE).is_file():
                return folder
        raise CheckpointError(
            f"{asking}: is built on {self.name}, which {cache()} does not hold; run {SET_UP}"
        )


def our_name(name: str) -> str:
    """Our name of a key of a published file; one of ours stays."""
    name = WRAPPERS.sub("", name)
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


def why_ignored(name: str) -> str | None:
    """The reason why a key (under our name) is never read; None: it is read."""
    return next((reason for pattern, reason in IGNORED if pattern.search(name)), None)


def aliases(name: str, tied: bool) -> tuple[str, ...]:
    """All names under which a published file holds one of our weights, ours first."""
    if tied and name == TEXT_TABLE:
        return TEXT_TABLE_ALIASES
    return {TEXT_TABLE: TABLE_NAMES, TEXT_HEAD: HEAD_NAMES}.get(name, (name,))


def named_as_ours(raw: Mapping[str, Value], tied: bool) -> dict[str, Value]:
    """Any file's keys under our names, each weight once, without what is never read."""
    named = {our_name(name): value for name, value in raw.items()}
    found = {
        name: value
        for name, value in named.items()
        if name not in TEXT_TABLE_ALIASES and why_ignored(name) is None
    }
    for ours in (TEXT_TABLE,) if tied else (TEXT_TABLE, TEXT_HEAD):
        values = [named[name] for name in aliases(ours, tied) if name in named]
        if values:
            found[ours] = values[-1]
    return found


def save(
    directory: Path, model: EChatModel, *, dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the weights (model.safetensors, or several files with an index) and model.yaml.

    dtype: of the stored weights, None as they are; notes: further keys for model.yaml. Raises
    InputError where they cannot be written.
    """
    stored = {
        name: value.detach().to(device="cpu", dtype=dtype)
        for name, value in own_weights(model).items()
    }
    weights.write_safetensors(directory, stored)
    write_settings(directory, model.settings, notes)


def write_settings(
    directory: Path, settings: EChatSettings, notes: Mapping[str, Any] | None = None
) -> None:
    """Write model.yaml. notes: further keys. Raises InputError where it cannot be written."""
    raw = as_plain(settings) | dict(notes or {})
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    with whole_file(directory / SETTINGS_FILE) as file:
        file.write(text.encode())


def published(own: Mapping[str, Tensor], tied: bool) -> list[tuple[list[str], Tensor]]:
    """Weights under our names, LoRA layers merged, with all their names in a published file."""
    return [
        ([published_name(alias) for alias in aliases(name, tied)], value)
        for name, value in own.items()
    ]


def empty_model(settings: EChatSettings, where: Path) -> EChatModel:
    """A model of these sizes without memory for its weights. Raises CheckpointError."""
    try:
        with weights.empty():
            return EChatModel(settings)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def own_weights(model: EChatModel) -> dict[str, Tensor]:
    """All weights of a model by name, tied ones once."""
    others = TEXT_TABLE_ALIASES[1:] if model.settings.tied else ()
    return {name: value for name, value in model.state_dict().items() if name not in others}


def weights_file(place: Path) -> Path:
    """The file with the weights: `place` itself, or the one in a directory of any kind.

    Raises CheckpointError where there is none, or where one must be named.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(
            f"{place}: no such model directory or file; give small, tiny, the path of a model or "
            "of its tar, the web address of one, or hub:OWNER/NAME[/FILE]"
        )
    folder = trained_folder(place)
    if folder != place:
        LOG.info("%s: of a training; taking %s", place, folder.relative_to(place))
    if holds_model(folder):
        return next(folder / name for name in MODEL_NAMES if (folder / name).is_file())
    states = deepspeed_states(folder)
    if states is not None and states.name != DEEPSPEED_STATES:
        raise CheckpointError(
            f"{folder}: weights in pieces (ZeRO 3); put them together first: "
            f"python common_utils/convert_checkpoint.py {place} DIR --to ours"
        )
    found = [states] if states is not None else sorted(folder.glob("*.pt"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found)
    choices = f", and {len(found)} .pt files to choose from: name one of {names}"
    raise CheckpointError(
        f"{folder / WEIGHTS_FILE}: no such file{choices if found else '; copy the model again'}"
    )


def holds_model(directory: Path) -> bool:
    """Whether a directory holds the weights of a model as we or transformers write them."""
    return any((directory / name).is_file() for name in MODEL_NAMES)


def trained_folder(place: Path) -> Path:
    """Where the weights of a training lie; a directory of another kind is returned as it is.

    Of the output of a training: the finished model, or the newest checkpoint; of a checkpoint:
    itself, or what DeepSpeed wrote in it; of what DeepSpeed wrote: the step. Raises CheckpointError
    where a step must be named.
    """
    if holds_model(place):
        return place
    if holds_model(place / FINISHED):
        return place / FINISHED
    steps = place / CHECKPOINTS if (place / CHECKPOINTS).is_dir() else place
    if (steps / LATEST).is_file():
        place = _step(steps, STATE_FILE) or place
    if (place / STATE_FILE).is_file() and (place / DEEPSPEED).is_dir():
        place = place / DEEPSPEED
    return _step(place, ANY_STATES) or place


def _step(directory: Path, holds: str) -> Path | None:
    """The folder of a step: the one that `latest` names, or the only one; None: there is none.

    holds: the pattern of a file in each, which the directory itself may hold as well.
    """
    if any(directory.glob(holds)):
        return directory
    steps = sorted({path.parent for path in directory.glob(f"*/{holds}")})
    latest = directory / LATEST
    if steps and latest.is_file():
        named = directory / latest.read_bytes().decode(errors="replace").strip()
        if named not in steps:
            raise CheckpointError(f"{latest}: names a folder that is not there; give the folder")
        return named
    if len(steps) > 1:
        names = ", ".join(step.name for step in steps)
        raise CheckpointError(f"{directory}: no {LATEST} to choose by: give one of {names}")
    return steps[0] if steps else None


def deepspeed_states(directory: Path) -> Path | None:
    """The file of the weights that DeepSpeed saved; None: there is none.

    Under the name DEEPSPEED_STATES of all weights (ZeRO 0 to 2), under another of a process's
    pieces of them (ZeRO 3). directory: as in trained_folder.
    """
    return min(trained_folder(directory).glob(ANY_STATES), default=None)


def settings_file(path: Path) -> Path:
    """The settings that belong to a file of weights: beside it, or above DeepSpeed's folder.

    Of a checkpoint without any: those of the finished model. A published file alone gets the
    published settings. Raises CheckpointError where none are found.
    """
    homes = [*path.parents][: 3 if path.name.endswith(DEEPSPEED_STATES) else 1]
    step = next((home for home in homes if (home / STATE_FILE).is_file()), None)
    if step is not None and step.parent.name == CHECKPOINTS:
        homes.append(step.parent.parent / FINISHED)
    for home in homes:
        for name in SETTINGS_NAMES:
            if (home / name).is_file():
                return home / name
    is_ours = path.name in (WEIGHTS_FILE, INDEX_FILE)
    if is_ours and (path.parent / "config.json").is_file():
        raise CheckpointError(
            f"{path.parent}: an LLM alone, no whole model; train from it with init_llm"
        )
    if step is not None:
        raise CheckpointError(
            f"{step / SETTINGS_FILE}: no such file, the checkpoint is an older one; give the "
            "model.yaml that it was trained with (--config YAML)"
        )
    if is_ours or not PUBLISHED_SETTINGS.is_file():
        raise CheckpointError(f"{homes[0] / SETTINGS_FILE}: No such file; copy the model again")
    return PUBLISHED_SETTINGS


def load(
    place: Path, settings: EChatSettings | None = None, dtype: torch.dtype | None = torch.float32,
    *, device: torch.device | str = "cpu", keep_lora: bool = False, share: EChatModel | None = None,
    as_stored: re.Pattern[str] | None = None,
) -> EChatModel:  # fmt: skip
    """A model in eval mode from a directory of ours, a published file, or DeepSpeed's directory.

    settings: None reads the YAML beside the weights; dtype: None keeps the stored types; keep_lora:
    leave LoRA layers as they are instead of merging them; share: a loaded model (for answering, not
    training) whose weights stand in for equal ones, so that these are in memory once; as_stored:
    the names of weights that keep their stored type.

    Weights on the CPU that need no conversion stay mapped to their file (see weights). Raises one
    CheckpointError that names what is missing, unexpected, mis-shaped or not finite, or the file
    that is not there.
    """
    path = weights_file(place)
    settings = settings or read_settings(settings_file(path))
    found = read_weights(path, settings.tied)
    found, settings = without_lora(path, found, settings, keep_lora)
    model = empty_model(settings, path)
    expected = own_weights(model)
    weights.check(path, expected, found, OTHER_MODEL)
    twins = own_weights(share) if share is not None else {}
    ready: dict[str, Tensor] = {}
    broken = []
    for name in logs.progress(expected, f"loading {path.name}", len(expected)):
        stays = as_stored is not None and as_stored.fullmatch(name)
        value = found.pop(name).to(device=device, dtype=None if stays else dtype)
        if not weights.is_finite(value):
            broken.append(f"{name} {list(value.shape)}")
        twin = twins.get(name)
        if (twin is not None and (twin.dtype, twin.device) == (value.dtype, value.device)
                and torch.equal(twin, value)):
            value = twin
        ready[name] = value
    weights.check_finite(path, broken)
    model.load_state_dict(ready, strict=False, assign=True)
    model.llm.tie_weights()
    with torch.device(device):
        model.llm.model.rotary_emb = type(model.llm.model.rotary_emb)(model.llm.config)
    return model.requires_grad_().eval()


def without_lora(
    path: Path, found: Mapping[str, Tensor], settings: EChatSettings, keep: bool = False
) -> tuple[dict[str, Tensor], EChatSettings]:
    """Weights and settings of a file, its LoRA layers merged, or kept. Raises CheckpointError."""
    if any(name.endswith(lora.DOWN) for name in found):
        if settings.lora is None:
            raise CheckpointError(
                f"{path}: holds LoRA layers, and its settings no alpha: write lora: {{rank: 64, "
                f"alpha: 32}} into {SETTINGS_FILE}"
            )
        if keep:
            return dict(found), settings
        found = lora.merged(found, settings.lora)
    return dict(found), replace(settings, lora=None)


def read_weights(path: Path, tied: bool = True) -> dict[str, Tensor]:
    """The weights under our names, each once, without what is never read."""
    return named_as_ours(stored_weights(path), tied)


def stored_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file, and those of the base models that the model.yaml beside it names.

    A weight of the file itself stands; one that its LoRA layers change gets their name for it.
    """
    own, beside = weights.read(path), path.parent / SETTINGS_FILE
    if path.name not in (WEIGHTS_FILE, INDEX_FILE) or not beside.is_file():
        return own
    for part, raw in (read_mapping(beside, CheckpointError, COPY).get(BASE_KEY) or {}).items():
        folder = parse(BaseModel, raw, f"{beside}: {BASE_KEY}.{part}").find(path.parent)
        for name, value in weights.read(folder / WEIGHTS_FILE).items():
            layer, _, kind = f"{part}.{name}".rpartition(".")
            inner = lora.BASE if f"{layer}{lora.DOWN}" in own else "."
            own.setdefault(f"{layer}{inner}{kind}", value)
    return own
