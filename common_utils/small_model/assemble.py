"""Puts the small model's trained parts together into one directory: pretrained/small.

    python -m common_utils.small_model.assemble --ear DIR --thinker DIR --voice DIR --out OUT

DIRs: what ear.py export, thinker.py export and voice.py parts have written. What the public
models give stays in their cache (base_models.py), named in OUT/model.yaml, which is written last: a
directory that has it is whole.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from common_utils.command import command
from common_utils.small_model import language_model, voice_labels
from common_utils.small_model.base_models import ORIGINS
from common_utils.small_model.ear import CLASSES_FILE, EAR_FILE, SPEECH_MARKS
from common_utils.small_model.pieces import ADAPTER
from common_utils.small_model.thinker import LORA, LORA_FILE, TOKENIZER_FILES
from common_utils.tiny_world.assemble import check_sizes
from common_utils.tiny_world.step import write_card
from osum_echat import weights
from osum_echat.errors import CheckpointError, OsumError
from osum_echat.inference.assistant import EChat
from osum_echat.logs import logger
from osum_echat.models import checkpoint, lora
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import EChatSettings
from osum_echat.models.pretrained import encoder_settings, llm_settings
from osum_echat.models.settings import read_settings
from osum_echat.settings import parse, read_mapping
from osum_echat.weights import WEIGHTS_FILE

LARGEST_MB = 90
CARD = Path(__file__).with_name("card.md")
MANNER = Path(__file__).with_name("model_notes.yaml")

log = logger(__name__)


def own_weights(ear: Path, thinker: Path, codes: int) -> dict[str, Tensor]:
    """What was trained, under the names of the whole model; its own speech codes are not used."""
    found = weights.read(ear / EAR_FILE)
    if SPEECH_MARKS not in found:
        raise CheckpointError(f"{ear / EAR_FILE}: no {SPEECH_MARKS}; export the ear again")
    marks = found.pop(SPEECH_MARKS)
    empty = torch.zeros(codes + 1, marks.shape[1], dtype=marks.dtype)
    found["speech_embedding.weight"] = torch.cat((empty[:codes], marks))
    found["speech_head.weight"], found["speech_head.bias"] = empty, empty[:, 0]
    for name, value in weights.read(thinker / LORA_FILE).items():
        layer, _, way = name.removesuffix(".weight").rpartition(".")
        found[layer + (lora.DOWN if way == "lora_A" else lora.UP)] = value
    return found


def write_model(ear: Path, thinker: Path, codes: int, out: Path) -> None:
    """Weights, tokenizer, and at last model.yaml, built on the base models of the cache."""
    models = {part: origin.model for part, origin in ORIGINS.items()}
    folders = {part: model.find(out) for part, model in models.items()}
    classes = parse(CtcSettings, read_mapping(ear / CLASSES_FILE)["ctc"], f"{ear}: ctc")
    settings = EChatSettings(
        encoder_settings(weights.read(folders["encoder"] / WEIGHTS_FILE)), ADAPTER,
        llm_settings(folders["llm"]), codes, LORA, classes,
    )  # fmt: skip
    weights.write_safetensors_file(out / WEIGHTS_FILE, own_weights(ear, thinker, codes))
    for name in (language_model.FILE, voice_labels.FILE):
        weights.write_safetensors_file(out / name, weights.read(ear / name))
    for name in TOKENIZER_FILES:
        shutil.copyfile(folders["llm"] / name, out / name)
    named = {
        part: asdict(model) | {"packages": list(model.packages)} for part, model in models.items()
    }
    checkpoint.write_settings(out, settings, {**read_mapping(MANNER), checkpoint.BASE_KEY: named})


def assemble(
    ear: Path, thinker: Path, voice: Path, out: Path, books: tuple[Path, ...] = ()
) -> None:
    """Write OUT, load it once, and write its card.

    Raises an OsumError; OUT then has no model.yaml.
    """
    settings = out / checkpoint.SETTINGS_FILE
    settings.unlink(missing_ok=True)
    for part in ("talker", "token2wav"):
        shutil.rmtree(out / part, ignore_errors=True)
        try:
            shutil.copytree(voice / part, out / part)
        except OSError as error:
            raise CheckpointError(f"{voice / part}: not copied; export the voice again") from error
    try:
        write_model(ear, thinker, read_settings(out / "talker").speech_codes, out)
        log.info("%s: %.1f MB", out, check_sizes(out, LARGEST_MB))
        EChat.load(out, device="cpu")
    except OsumError:
        settings.unlink(missing_ok=True)
        raise
    write_card(out, books, CARD.read_text(encoding="utf-8"))


main = command(assemble, books="times of the recipe's steps, for the card")


if __name__ == "__main__":
    sys.exit(main())
