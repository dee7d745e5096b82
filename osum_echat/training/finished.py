"""That a training is done: known before torch and transformers are loaded, which takes seconds."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from osum_echat.errors import OsumError
from osum_echat.files import write_json
from osum_echat.logs import is_first_rank, logger
from osum_echat.settings import override, read_mapping

LOG = logger(__name__)
FILE = "finished.json"          # in the output
RESULT, NEWEST = "final", "checkpoints/latest"


def is_finished(config: str, overrides: Sequence[str]) -> bool:
    """Whether these very settings were trained to their end, and what came of it is still there.

    False where that is not sure. Raises ConfigError for settings that cannot be read.
    """
    output, settings = _asked(config, overrides)
    try:
        told = json.loads((output / FILE).read_bytes())
        newest = (output / NEWEST).read_text(encoding="utf-8")
        same = (told["settings"], told["newest"]) == (settings, newest)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if same and (output / RESULT).is_dir():
        LOG.info("already finished at step %s: see %s", told["step"], output)
        return True
    return False


def remember(config: str, overrides: Sequence[str], step: int) -> None:
    """Keep that these settings are trained to their end."""
    if not is_first_rank():
        return
    output, settings = _asked(config, overrides)
    try:
        newest = (output / NEWEST).read_text(encoding="utf-8")
        write_json(output / FILE, {"step": step, "settings": settings, "newest": newest})
    except (OSError, OsumError) as error:       # the next start takes some seconds more
        LOG.warning("%s: %s", output / FILE, error)


def _asked(config: str, overrides: Sequence[str]) -> tuple[Path, str]:
    """The output of an experiment, and a short name of all its settings."""
    raw: dict[str, Any] = read_mapping(Path(config))
    override(raw, overrides)
    told = json.dumps(raw, sort_keys=True, default=str)
    return Path(str(raw.get("output"))), sha256(told.encode()).hexdigest()[:16]
