"""Raw lists read for their voices: where each wav is, who speaks, and the row itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat.errors import DataError


@dataclass(frozen=True, slots=True)
class VoiceRow:
    """One recording. `voice` is None where the list does not name it."""

    key: str
    wav: Path
    voice: str | None
    raw: Mapping[str, Any]


def read_list(path: Path) -> list[VoiceRow]:
    """The rows of a raw list; wav paths are relative to the list's folder, or absolute."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the path of a raw list") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(line, path, number))
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def _row(line: str, path: Path, number: int) -> VoiceRow:
    where = f"{path}, line {number}"
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(raw, dict) or "wav" not in raw:
        raise DataError(f"{where}: no `wav`; every row needs one")
    voice = raw.get("voice", raw.get("speaker"))
    key = str(raw.get("key", number))
    return VoiceRow(key, path.parent / raw["wav"], None if voice is None else str(voice), raw)
