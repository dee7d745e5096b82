"""Where the files of this project and of its cache lie. Imports nothing heavy, for `--help`."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HOUSE = PACKAGE.parent  # of a wheel: where packages lie
CONF = PACKAGE / "conf"  # the repository's conf/
CACHE_VARIABLE, CACHE = "OSUM_ECHAT_CACHE", "~/.cache/osum_echat"
WHOLE = "model.yaml"  # the last file that is written of a model
FAKE_DATA = HOUSE / "common_utils" / "fake_data"  # ten utterances in every form
PUBLISHED_SETTINGS = CONF / "osum_echat" / "model.yaml"
PUBLISHED_PROMPTS = CONF / "prompt_config.yaml"


def cache() -> Path:
    """The folder of what is fetched or made once for all clones and installations."""
    return Path(os.environ.get(CACHE_VARIABLE) or CACHE).expanduser()


def _home(name: str) -> Path:
    """A model's folder in the repository, else its place in the cache."""
    here = HOUSE / "pretrained" / name
    return here if here.is_dir() else cache() / name


TINY = _home("tiny")  # knows a synthetic world; for tests
SMALL = _home("small")  # hears people
MODELS = {"small": SMALL, "tiny": TINY}  # by what they are called


def model_source(name: str | Path | None = None) -> str:
    """A model's place: of one that comes along, its path; None: the first of them that is whole."""
    if name is None:
        return str(next((home for home in MODELS.values() if (home / WHOLE).is_file()), TINY))
    return str(MODELS.get(str(name), name))
