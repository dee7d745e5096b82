"""What the ear writes with: the first merges of the LLM's own BPE, and a class for each label.

A merge uses earlier merges only, so each token of the LLM is one row of these pieces, and each
piece is a row of the LLM's table.

    python -m common_utils.small_model.pieces --llm build/parts/smollm2 --whisper DIR --out DIR
"""

import json
import re
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from common_utils.command import command
from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.models.pretrained import llm_settings, start_encoder
from osum_echat.settings import read_mapping

MERGES = 2000
KINDS = {  # of labels of a voice (osum_echat/thinking.py); NOISE: nobody speaks
    "age": ("CHILD", "ADULT", "OLD"),
    "gender": ("MALE", "FEMALE"),
    "emotion": ("NEUTRAL", "HAPPY", "SAD", "ANGER", "SURPRISE", "FEAR", "DISGUST"),
    "event": ("LAUGH", "COUGH", "CRY", "SCREAMING", "SIGH", "SNEEZE", "GROAN", "NOISE"),
}
LABELS = tuple(chain(*KINDS.values()))
TEXT_TABLE = "model.embed_tokens.weight"
ADAPTER = AdapterSettings(heads=8, units=1536, blocks=4, dropout=0.0)
ENCODER = EncoderSettings(mels=80, width=512, heads=8, units=2048, blocks=6, dropout=0.0)
_UNHEARD = re.compile(r"[^a-z' ]+")
_NUMBER = re.compile(r"\d")


def heard_words(text: str) -> str | None:
    """A sentence as the ear shall write it: lower case, letters and apostrophes, a space before.

    None for a text with digits, whose words nobody knows for certain.
    """
    if _NUMBER.search(text):
        return None
    text = text.lower().replace("’", "'").replace("-", " ").replace("&", " and ")
    words = [word.strip("'") for word in _UNHEARD.sub(" ", text).split()]
    return "".join(f" {word}" for word in words if word)


def cut_tokenizer(llm: Path, out: Path, merges: int = MERGES) -> int:
    """Write the LLM's tokenizer with its first merges alone, and the labels; returns its size."""
    raw = read_mapping(llm / "tokenizer.json", CheckpointError, "give the LLM's directory")
    model, first = raw["model"], _first_merged(raw, merges)
    model["merges"] = model["merges"][:merges]
    model["vocab"] = {
        piece: number for piece, number in model["vocab"].items() if number < first + merges
    }
    for place, label in enumerate(LABELS):
        raw["added_tokens"].append({
            "id": first + merges + place, "content": f"<{label}>", "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False, "special": False,
        })  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False), "utf-8")
    shutil.copy(llm / "tokenizer_config.json", out / "tokenizer_config.json")
    return first + merges + len(LABELS)


def _first_merged(raw: dict[str, Any], count: int) -> int:
    """The id of the first merge; CheckpointError where so many are not numbered on end."""
    vocab, merges = raw["model"]["vocab"], raw["model"]["merges"][:count]
    ids = [vocab["".join(one if isinstance(one, list) else one.split(" "))] for one in merges]
    if ids != list(range(ids[0], ids[0] + count)):
        raise CheckpointError("tokenizer: its merges are not numbered in their order; take another")
    return ids[0]


def start(llm: Path, whisper: Path, out: Path, seed: int = 1) -> None:
    """A model to train the ear of: Whisper's encoder, a new adapter, the LLM's rows of the pieces.

    Its LLM has one layer of no use: hearing alone needs the table only.
    """
    torch.manual_seed(seed)
    size = cut_tokenizer(llm, out)
    config = {**llm_settings(llm), "vocab_size": size, "num_hidden_layers": 1}
    model = EChatModel(EChatSettings(ENCODER, ADAPTER, config, speech_codes=500))
    start_encoder(model.encoder, whisper)
    rows = weights.read(llm / weights.WEIGHTS_FILE)[TEXT_TABLE][: size - len(LABELS)].float()
    norm = rows.norm(dim=1).mean()
    with torch.no_grad():
        table = model.llm.get_input_embeddings().weight
        table[: len(rows)] = rows
        table[len(rows) :] *= norm / table[len(rows) :].norm(dim=1, keepdim=True)
        marks = model.speech_embedding.weight
        marks *= norm / marks.norm(dim=1, keepdim=True)
    checkpoint.save(out, model, dtype=torch.float32)


main = command(start, llm="SmolLM2 as a Qwen2 directory", whisper="Whisper base")


if __name__ == "__main__":
    sys.exit(main())
