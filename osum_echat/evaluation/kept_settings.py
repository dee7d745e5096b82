"""What the answers in a directory depend on, kept beside them: other settings are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError
from osum_echat.files import write_json

FILE = "settings.json"
SHOWN_LETTERS = 60


def settle(out: Path, own: Mapping[str, Any]) -> None:
    """Compare with the settings that `out` was made with, or write them down.

    own: plain values by name; names that only the file has are not compared. Raises InputError
    naming those that differ.
    """
    place = out / FILE
    wanted = json.loads(json.dumps(own))
    if not place.exists():
        write_json(place, wanted)
        return
    try:
        earlier = json.loads(place.read_bytes())
        other = [name for name in wanted if earlier.get(name) != wanted[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{place}: not read ({error}); --overwrite starts anew") from error
    if other:
        name = other[0]
        raise InputError(
            f"--out {out}: holds answers of another {', '.join(other)} "
            f"({_short(earlier.get(name))}, not {_short(wanted[name])}); choose another --out, or "
            "--overwrite"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
