"""One experiment is one YAML: its dataclasses, and how a file and overrides become them."""

import types
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from osum_echat.data.loader import DataSettings
from osum_echat.data.prepare import PrepareSettings
from osum_echat.errors import ConfigError
from osum_echat.training.engine import EngineSettings
from osum_echat.training.loop import RunSettings
from osum_echat.training.schedule import ScheduleSettings
from osum_echat.training.stages import StageSettings


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything that one training needs. Paths are relative to the working directory."""

    output: str  # checkpoints, metrics and, in `final`, the trained model
    data: DataSettings
    stage: StageSettings
    schedule: ScheduleSettings
    run: RunSettings
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    init: str | None = None  # what to start from, as for inference; None: random weights
    model: str | None = None  # model.yaml with the sizes; None: those of `init`
    tokenizer: str | None = None  # tokenizer directory; None: that of `init` or `init_llm`
    init_encoder: str | None = None  # stock Whisper that the encoder starts from
    init_llm: str | None = None  # stock Qwen2 or Qwen3 directory that the LLM starts from
    init_hearing: str | None = None  # model, ours or published, whose encoder and adapter to take
    keep_lora: bool = False  # train on the LoRA layers of `init` instead of merging them
    device: str = "auto"
    seed: int = 777

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer or self.init_llm
        if self.init is None and (self.model is None or tokenizer is None):
            raise ConfigError("experiment: give `init`, or both `model` and `tokenizer`")


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment; each override is `key=value` with dots, e.g. run.steps=100."""
    path = Path(path)
    raw = read_yaml(path)
    for override in overrides:
        _override(raw, override)
    return parse(Experiment, raw, path.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds no settings; a mapping of names to values is needed")
    return raw


def dump(experiment: Experiment) -> str:
    """The experiment as YAML that `load` reads back."""
    text: str = yaml.safe_dump(_plain(asdict(experiment)), sort_keys=False, allow_unicode=True)
    return text


def parse(kind: type, raw: object, where: str) -> Any:
    """A settings dataclass from plain values: unknown keys refused, types checked."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: {raw!r} where a mapping of settings is needed")
    known = {item.name: item for item in fields(kind)}
    hints = get_type_hints(kind)
    for key in raw:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}.{key}: no such setting; {hint}")
    for name, item in known.items():
        if item.default is MISSING and item.default_factory is MISSING and name not in raw:
            raise ConfigError(f"{where}.{name}: missing, and it has no default")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in raw.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` asks for."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(one for one in options if one is not type(None)), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {value!r} where a list is needed")
        inner = get_args(hint)[0]
        return tuple(_convert(inner, one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {value!r} where a mapping is needed")
        inner = get_args(hint)[1]
        return {str(key): _convert(inner, one, f"{where}.{key}") for key, one in value.items()}
    return _plain_value(hint, value, where)


def _plain_value(hint: Any, value: Any, where: str) -> Any:
    """A number, text or truth value; YAML reads 1e-3 as text, so text may be a number."""
    if hint is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return float(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {value!r} where a number is needed") from error
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {value!r} where {_WORDS.get(hint, hint.__name__)} is needed")


_WORDS = {int: "a whole number", bool: "true or false", str: "text", float: "a number"}


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one `key=value` in `raw`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as key=value, e.g. run.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: its value is not YAML: {error}") from error
    *path, last = key.split(".")
    place = raw
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {part!r} holds no settings")
        place = inner
    place[last] = value


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
