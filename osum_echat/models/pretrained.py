"""Where a model comes from: its weights, its settings, and what lies beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat.errors import CheckpointError
from osum_echat.models import deepspeed_directory, hub
from osum_echat.models.settings import COPY, SETTINGS_FILE, UPSTREAM_KEY
from osum_echat.models.stored import INDEX_FILE, WEIGHTS_FILE
from osum_echat.paths import PUBLISHED_SETTINGS
from osum_echat.settings import read_mapping

# Ours, upstream's, and what upstream's training leaves beside its states.
SETTINGS_NAMES = (SETTINGS_FILE, "ct_config.yaml", "train.yaml")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
TOKENIZER_PLACES = ("", "llm", "tokenizer")
TOKEN2WAV_PLACES = ("token2wav", "CosyVoice-300M-25Hz", "CosyVoice-300M-25Hz.tar")


@dataclass(frozen=True, slots=True)
class Source:
    """weights: a file, an index of files or a DeepSpeed folder; settings: ours or upstream's."""

    weights: Path
    settings: Path

    @property
    def home(self) -> Path:
        """The directory that the weights lie in."""
        return self.weights.parent

    def settings_yaml(self) -> dict[str, Any]:
        """The settings file as plain values."""
        return read_mapping(self.settings, CheckpointError, COPY)

    @property
    def is_upstream(self) -> bool:
        """True where the settings are upstream's."""
        return UPSTREAM_KEY in self.settings_yaml()

    def tokenizer(self) -> Path:
        """The directory of the tokenizer: beside weights or settings, or as the settings say.

        Raises CheckpointError naming the places where it was looked for.
        """
        raw = self.settings_yaml()
        homes = (self.home, self.settings.parent)
        places = [home / name for home in homes for name in TOKENIZER_PLACES]
        for named in (raw.get("tokenizer"), raw.get("llm_path")):
            if isinstance(named, str):
                places += [self.settings.parent / named, Path(named)]
        for place in places:
            if any((place / name).is_file() for name in TOKENIZER_FILES):
                return place
        looked = ", ".join(dict.fromkeys(str(place) for place in places))
        raise CheckpointError(
            f"{self.weights}: no tokenizer ({' or '.join(TOKENIZER_FILES)}) in {looked}; put the "
            "LLM's there, or give --tokenizer DIR"
        )

    def token2wav(self) -> Path:
        """The directory or tar of token to wav beside the weights; it may not exist."""
        places = [self.home / name for name in TOKEN2WAV_PLACES]
        return next((place for place in places if place.exists()), places[0])


def find(place: str | Path, config: str | Path | None = None) -> Source:
    """The parts of a source: a directory, a file, or hub:OWNER/NAME[/FILE].

    config: the settings; None: those beside the weights, or the published ones for a lone file.
    Raises CheckpointError naming what is not there.
    """
    local = hub.fetch(str(place)) if hub.is_hub(place) else Path(place)
    weights = weights_file(local)
    if config is None:
        return Source(weights, settings_file(weights))
    if not Path(config).is_file():
        raise CheckpointError(f"{config}: no such settings; give a model.yaml")
    return Source(weights, Path(config))


def weights_file(place: Path) -> Path:
    """The file or DeepSpeed folder with the weights. Raises CheckpointError if there is none."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(
            f"{place}: no such model directory or file; give the path of a model, or "
            "hub:OWNER/NAME[/FILE]"
        )
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (place / name).is_file():
            return place / name
    folder = deepspeed_directory.step_folder(place)
    if folder is not None:
        return folder
    published = sorted(place.glob("*.pt"))
    if len(published) == 1:
        return published[0]
    raise CheckpointError(
        f"{place / WEIGHTS_FILE}: no such file"
        + (
            f", and {len(published)} .pt files to choose from: name one of "
            f"{', '.join(path.name for path in published)}"
            if published
            else "; copy the model again"
        )
    )


def settings_file(weights: Path) -> Path:
    """The settings that belong to weights: beside them, or above a DeepSpeed folder.

    A published file alone gets the published settings. Raises CheckpointError where none are found.
    """
    homes = [weights, weights.parent] if weights.is_dir() else [weights.parent]
    for home in homes:
        for name in SETTINGS_NAMES:
            if (home / name).is_file():
                return home / name
    is_ours = weights.name in (WEIGHTS_FILE, INDEX_FILE)
    if is_ours and (weights.parent / "config.json").is_file():
        raise CheckpointError(
            f"{weights.parent}: an LLM alone, no whole model; train from it with init_llm"
        )
    if is_ours or not PUBLISHED_SETTINGS.is_file():
        raise CheckpointError(f"{homes[-1] / SETTINGS_FILE}: No such file; copy the model again")
    return PUBLISHED_SETTINGS
