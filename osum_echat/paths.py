"""Where the files that come with this project lie. Imports nothing, for `--help`."""

from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
TINY = HOUSE / "pretrained" / "tiny"  # knows a synthetic world; for tests
SMALL = HOUSE / "pretrained" / "small"  # hears people
MODELS = {"small": SMALL, "tiny": TINY}  # by what they are called
WHOLE = "model.yaml"  # the last file that is written of a model
FAKE_DATA = HOUSE / "common_utils" / "fake_data"  # ten utterances in every form
PUBLISHED_SETTINGS = HOUSE / "conf" / "osum_echat" / "model.yaml"
PUBLISHED_PROMPTS = HOUSE / "conf" / "prompt_config.yaml"


def model_source(name: str | Path | None = None) -> str:
    """A model's place: of one that comes along, its path; None: the first of them that is whole."""
    if name is None:
        return str(next((home for home in MODELS.values() if (home / WHOLE).is_file()), TINY))
    return str(MODELS.get(str(name), name))
