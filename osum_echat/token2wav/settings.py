"""Settings of token to wav: YAML to dataclasses, unknown keys refused with the nearest name."""

from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

from osum_echat.errors import ConfigError

T = TypeVar("T")


def parse(cls: type[T], raw: object, where: str) -> T:
    """Build the dataclass `cls` from a mapping; a list becomes a tuple, a mapping its dataclass."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: {raw!r} where a mapping of settings is needed")
    hints, values = get_type_hints(cls), {}
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for key, value in raw.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}.{key}: no such setting; {hint}")
        values[key] = _value(hints[key], value, f"{where}.{key}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, value, where)
    if isinstance(value, list):
        if get_origin(hint) is not tuple:
            raise ConfigError(f"{where}: a list, where {hint} is needed")
        return tuple(tuple(one) if isinstance(one, list) else one for one in value)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)         # YAML reads 1e-3 as text
        except ValueError as error:
            raise ConfigError(f"{where}: {value!r} is not a number") from error
    if hint in (int, str, bool, float) and type(value) is not hint:
        raise ConfigError(f"{where}: {value!r}, need {hint.__name__}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        return mapping(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a YAML file") from error


def mapping(data: bytes, where: str) -> dict[str, Any]:
    """The mapping in the bytes of a YAML file called `where`."""
    try:
        raw = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: holds no settings; a mapping of names to values is needed")
    return raw


def override(raw: dict[str, Any], assignments: list[str]) -> None:
    """Write `key.key=value` arguments into `raw`; values are read as YAML."""
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r}: write key=value")
        *path, last = name.split(".")
        place = raw
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{assignment!r}: {part} holds no settings")
        place[last] = yaml.safe_load(value)
