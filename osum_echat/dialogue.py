"""A conversation so far as a file: `dialogue.json`, a list of turns, the oldest first.

    [{"wav": "first.wav", "reply": "Hello, what can I do for you?"},
     {"text": "who are you?", "reply": "I am OSUM-EChat.", "reply_speech": [12, 7, 7]}]

A turn has what the user said, as a wav (a relative path starts at the file's folder) or as text,
and the reply; reply_speech, the codes it was spoken in, may be left out.
"""

import json
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError
from osum_echat.records import Turn

KEYS = ("wav", "text", "reply", "reply_speech")


def read(path: Path) -> tuple[Turn, ...]:
    """The turns of a file. Raises InputError naming the turn that cannot be used."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file of earlier turns") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); write a list of turns") from error
    if not isinstance(raw, list):
        raise InputError(f"{path}: a {type(raw).__name__}; write a list of turns")
    return tuple(_turn(one, f"{path}: turn {place}", path.parent) for place, one in
                 enumerate(raw, 1))  # fmt: skip


def _turn(raw: Any, where: str, root: Path) -> Turn:
    if not isinstance(raw, dict) or not set(raw) <= set(KEYS):
        raise InputError(f"{where}: write an object with {', '.join(KEYS)}")
    for name in ("wav", "text", "reply"):
        if not isinstance(raw.get(name, ""), str):
            raise InputError(f"{where}: {name} is {raw[name]!r}, need a string")
    codes = raw.get("reply_speech", [])
    if not isinstance(codes, list) or not set(map(type, codes)) <= {int}:
        raise InputError(f"{where}: reply_speech must be a list of whole numbers")
    if not raw.get("wav") and not raw.get("text"):
        raise InputError(f"{where}: give what the user said, as wav or as text")
    if not raw.get("reply"):
        raise InputError(f"{where}: give the reply")
    return Turn(
        audio=root / raw["wav"] if raw.get("wav") else None, text=raw.get("text"),
        reply_text=raw["reply"], reply_speech=tuple(codes),
    )  # fmt: skip
