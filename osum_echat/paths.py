"""Where the files that come with this project lie. Imports nothing, for `--help`."""

from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
TINY = HOUSE / "pretrained" / "tiny"  # the small model
FAKE_DATA = HOUSE / "common_utils" / "fake_data"  # ten utterances in every form
PUBLISHED_SETTINGS = HOUSE / "conf" / "osum_echat" / "model.yaml"
PUBLISHED_PROMPTS = HOUSE / "conf" / "prompt_config.yaml"
