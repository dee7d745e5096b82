"""Settings: a YAML or JSON file to a mapping, `key=value` into it, a mapping to its dataclass."""

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from osum_echat.errors import ConfigError, OsumError

T = TypeVar("T")
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster
_WORDS = {int: "a whole number", bool: "true or false", str: "text", float: "a number"}


def read_mapping(
    path: Path,
    error: type[OsumError] = ConfigError,
    advice: str = "give the path of a settings file",
) -> dict[str, Any]:
    """The mapping in a YAML file, or in a JSON file by its name; plain values only.

    Raises `error`; advice: what would do where the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise error(f"{path}: {fault.strerror}; {advice}") from fault
    return mapping(data, str(path), error)


def mapping(data: bytes, where: str, error: type[OsumError] = ConfigError) -> dict[str, Any]:
    """The mapping in the bytes of a file called `where`. Raises `error`, for a name twice too."""
    raw = _plain_values(data, where, error)
    if not isinstance(raw, dict):
        raise error(f"{where}: holds no settings; a mapping of names to values is needed")
    return raw


def _plain_values(data: bytes, where: str, error: type[OsumError]) -> Any:
    is_json = where.endswith(".json")
    try:
        text = data.decode("utf-8-sig")
        if is_json:
            return json.loads(text, object_pairs_hook=_pairs)
        return yaml.load(text, _Loader)
    except _NameTwiceError as fault:
        raise error(f"{where}: {fault}") from fault
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        said = " ".join(str(fault).split())
        raise error(f"{where}: not {'JSON' if is_json else 'YAML'}: {said}") from fault


class _NameTwiceError(ValueError):
    """A mapping that has one name twice: only one of the values could be used."""


class _Loader(_YamlLoader):  # type: ignore[misc, valid-type]
    """Plain values. Raises YAMLError, and _NameTwiceError."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called before what `<<` merges in stands beside a mapping's own names, and again after.
        """
        lines: dict[tuple[str, str], int] = {}
        for name, _ in () if hasattr(node, "is_checked") else node.value:
            line, place = name.start_mark.line + 1, (name.tag, str(name.value))
            if place in lines:
                raise _NameTwiceError(
                    f"{place[1]!r} stands twice, in line {lines[place]} and in line {line}; "
                    "keep one"
                )
            lines[place] = line
        node.is_checked = True      # type: ignore[attr-defined]
        super().flatten_mapping(node)


# 1e-3, which YAML 1.1 takes for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+$", re.IGNORECASE),
    list("-+.0123456789"),
)  # fmt: skip


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NameTwiceError(f"{twice!r} stands twice in one object; keep one")
    return found


def override(raw: dict[str, Any], assignments: Iterable[str]) -> None:
    """Set each `key=value` in `raw`, dots in the key lead inwards; the value is read as YAML."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {assignment!r}: write it as key=value, run.steps=100")
        data = text.encode(errors="surrogateescape")
        value = _plain_values(data, f"override {assignment!r}", ConfigError)
        *path, last = key.split(".")
        place = raw
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"override {assignment!r}: {part!r} holds no settings")
            place = inner
        place[last] = value


def no_misspelt(raw: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    """Raise ConfigError for a key that is nearly a known one; the others may be anybody's."""
    for key in raw.keys() - {*known}:
        if near := get_close_matches(str(key), known, n=1, cutoff=0.8):
            raise ConfigError(f"{where}{key}: no such setting; did you mean {near[0]!r}?")


def parse(kind: type[T], raw: object, where: str, stored: bool = False) -> T:
    """A settings dataclass from plain values: unknown keys refused, types checked.

    A class variable RENAMED of the dataclass names the new key of each old one, for the message.
    stored: by an earlier version: old keys count as the new ones, those that are gone are left out.
    """
    inside = f"{where}." if where else ""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: {raw!r} where a mapping of settings is needed")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    renamed = getattr(kind, "RENAMED", {})
    if stored:
        named = {renamed.get(key, key): value for key, value in raw.items()}
        raw = {key: value for key, value in named.items() if key in known}
    for key in raw:
        if key in renamed:
            raise ConfigError(f"{inside}{key}: is named {renamed[key]} now; rename it")
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{inside}{key}: no such setting; {hint}")
    for name, item in known.items():
        if item.default is MISSING and item.default_factory is MISSING and name not in raw:
            raise ConfigError(f"{inside}{name}: missing, and it has no default")
    return kind(**{
        key: _value(hints[key], value, f"{inside}{key}", stored) for key, value in raw.items()
    })  # fmt: skip


def _value(hint: Any, value: Any, where: str, stored: bool) -> Any:
    """`value` as the type `hint` asks for."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _value(next(one for one in options if one is not type(None)), value, where, stored)
    if is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, value, where, stored)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {value!r} where a list is needed")
        inner = get_args(hint)[0]
        return tuple(_value(inner, one, f"{where}[{i}]", stored) for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {value!r} where a mapping is needed")
        inner = get_args(hint)[1]
        return {
            str(key): _value(inner, one, f"{where}.{key}", stored) for key, one in value.items()
        }
    return _plain(hint, value, where)


def _plain(hint: Any, value: Any, where: str) -> Any:
    """A number, text or truth value."""
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {value!r} where {_WORDS.get(hint, hint.__name__)} is needed")


def check_word(place: str, word: str, known: Iterable[str]) -> None:
    """ConfigError for the setting at a place where its word is none of those known."""
    if word not in (known := tuple(known)):
        raise ConfigError(f"{place}: {word!r} is not one of {', '.join(known)}")


def check_numbers(settings: Any, place: str, names: str, least: float, most: float = inf) -> None:
    """ConfigError for the first of the named settings that is below `least` or above `most`."""
    for name in names.split():
        if not least <= getattr(settings, name) <= most:
            need = f"{least} or more" if most == inf else f"{least} to {most}"
            raise ConfigError(f"{place}.{name}: {getattr(settings, name)}, need {need}")


def differences(before: Any, now: Any) -> dict[str, str]:
    """Settings that differ between two dataclasses of a kind, in words, by their place: run.steps.
    """
    old, new = (dict(_leaves(asdict(one))) for one in (before, now))
    return {name: f"{name} {old.get(name)!r}, now {new.get(name)!r}"
            for name in sorted({*old, *new}) if old.get(name) != new.get(name)}  # fmt: skip


def _leaves(value: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{place}{name}.")
        else:
            yield f"{place}{name}", list(inner) if isinstance(inner, tuple) else inner
