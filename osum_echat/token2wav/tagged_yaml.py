"""A YAML full of tags (`!new:`, `!name:`, `!apply:`, `!ref`) read as plain data: no tag is obeyed.

The published settings are a HyperPyYAML file, whose tags name classes and functions to call. Here a
tagged mapping is a mapping, `!ref <name>` is looked up, and what a call would give is not known.
"""

import math
import re
from typing import Any

import yaml

from osum_echat.errors import CheckpointError

REFERENCE = re.compile(r"<(\w+(?:[.\[]\w+\]?)*)>")
MOST_REFERENCES = 20            # one leading to the next


class _Reference(str):
    """The text of a `!ref`."""


class _Reader(yaml.SafeLoader):
    """The safe loader, to which every tag that it does not know means nothing."""


def _untagged(reader: _Reader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return reader.construct_mapping(node, deep=True)
    if tag.startswith("!apply:"):
        return None
    if isinstance(node, yaml.SequenceNode):
        return reader.construct_sequence(node, deep=True)
    text = str(node.value)
    return _Reference(text) if tag == "!ref" else text


_Reader.add_multi_constructor("", _untagged)


class Sheet:
    """Settings by their path of names. What the file does not tell, or would compute, is None."""

    def __init__(self, root: dict[str, Any], where: str) -> None:
        self.root, self.where = root, where

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Sheet":
        """Raises CheckpointError for what is not YAML, or holds no settings."""
        try:
            root = yaml.load(data.decode("utf-8"), Loader=_Reader)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{where}: not YAML ({reason}); copy it again") from error
        if not isinstance(root, dict):
            raise CheckpointError(f"{where}: holds no settings; copy it again")
        return cls(root, where)

    def value(self, *path: str) -> Any:
        """What stands at a path of names; references, and the `content` of a wrapper, followed."""
        place: Any = self.root
        for name in path:
            if isinstance(place, dict) and name not in place:
                place = self._followed(place.get("content"))
            place = self._followed(place.get(name)) if isinstance(place, dict) else None
        return place

    def _followed(self, value: Any) -> Any:
        for _ in range(MOST_REFERENCES):
            if not isinstance(value, _Reference):
                return value
            named = REFERENCE.fullmatch(value.strip())
            if named is None:
                return None             # arithmetic
            value = self.root
            for name in re.findall(r"\w+", named[1]):
                value = value.get(name) if isinstance(value, dict) else None
        raise CheckpointError(f"{self.where}: a !ref that leads back to itself; copy it again")

    def number(self, *path: str) -> float | None:
        """A number, also where YAML takes it for text (1e-06)."""
        value = self.value(*path)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise CheckpointError(f"{self.where}: {'.'.join(path)}: {value!r} is not a number")
        return number

    def whole(self, *path: str) -> int | None:
        """A whole number."""
        value = self.number(*path)
        if value is not None and not value.is_integer():
            raise CheckpointError(f"{self.where}: {'.'.join(path)}: {value} is not a whole number")
        return None if value is None else int(value)

    def wholes(self, *path: str) -> tuple[int, ...] | None:
        """A list of whole numbers."""
        value = self.value(*path)
        if value is not None and not _are_whole(value):
            name = ".".join(path)
            raise CheckpointError(f"{self.where}: {name}: {value!r} is no list of whole numbers")
        return None if value is None else tuple(value)

    def tables(self, *path: str) -> tuple[tuple[int, ...], ...] | None:
        """A list of lists of whole numbers."""
        value = self.value(*path)
        if value is not None and not (isinstance(value, list) and all(map(_are_whole, value))):
            name = ".".join(path)
            raise CheckpointError(f"{self.where}: {name}: {value!r} is no list of number lists")
        return None if value is None else tuple(map(tuple, value))


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)
