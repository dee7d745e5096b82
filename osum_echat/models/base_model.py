"""Public models that ours are built on: their weights lie in a cache, not in each model's folder.

`base` in model.yaml names one for each part that it gives (encoder, llm). Set-up puts them there
once (common_utils/small_model/base_models.py), as safetensors under the names of that part.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.models import lora
from osum_echat.models.settings import COPY, SETTINGS_FILE
from osum_echat.paths import cache
from osum_echat.settings import parse, read_mapping
from osum_echat.weights import INDEX_FILE, WEIGHTS_FILE

KEY = "base"                            # of model.yaml
SET_UP = "python -m common_utils.small_model.base_models"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """sha256: of the weights as the packages make them; from the hub they are others."""

    name: str
    sha256: str
    packages: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies that was made from the packages."""
        return cache() / f"{self.name}-{self.sha256[:12]}"

    @property
    def hub_folder(self) -> Path:
        """Where it lies that came from the hub."""
        return cache() / f"{self.name}-hub"

    def find(self, asking: object) -> Path:
        """The folder that is there. asking: whose part it is. Raises CheckpointError."""
        for folder in (self.folder, self.hub_folder):
            if (folder / WEIGHTS_FILE).is_file():
                return folder
        raise CheckpointError(
            f"{asking}: is built on {self.name}, which {cache()} does not hold; run {SET_UP}"
        )


def read(path: Path) -> dict[str, Tensor]:
    """The weights of a file, and those of the base models that the model.yaml beside it names.

    A weight of the file itself stands; one that its LoRA layers change gets their name for it.
    """
    own, beside = weights.read(path), path.parent / SETTINGS_FILE
    if path.name not in (WEIGHTS_FILE, INDEX_FILE) or not beside.is_file():
        return own
    for part, raw in (read_mapping(beside, CheckpointError, COPY).get(KEY) or {}).items():
        folder = parse(BaseModel, raw, f"{beside}: {KEY}.{part}").find(path.parent)
        for name, value in weights.read(folder / WEIGHTS_FILE).items():
            layer, _, kind = f"{part}.{name}".rpartition(".")
            inner = lora.BASE if f"{layer}{lora.DOWN}" in own else "."
            own.setdefault(f"{layer}{inner}{kind}", value)
    return own
