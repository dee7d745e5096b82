"""The trained ear for the whole model: the adapter, and the rows its CTC reads beside the LLM's.

    python -m common_utils.small_model.export_ear --model build/ear/run --out build/export/ear

Writes ear.safetensors in half precision: adapter.*, ctc_labels.weight (labels, width) and
speech_marks (3, width), the second of which, before a clip, is the blank; and ear.yaml: `ctc` of
model.yaml.
"""

import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor

from common_utils.command import command
from common_utils.small_model.pieces import LABELS
from osum_echat.models import checkpoint
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import MARKS, EChatModel
from osum_echat.training import state
from osum_echat.weights import write_safetensors_file

EAR_FILE, CLASSES_FILE, SPEECH_MARKS = "ear.safetensors", "ear.yaml", "speech_marks"


def parts_of(model: EChatModel) -> tuple[dict[str, Tensor], CtcSettings]:
    """What the whole model takes over from the one that the ear was trained in."""
    adapter = {f"adapter.{name}": value for name, value in model.adapter.state_dict().items()}
    table = model.llm.get_input_embeddings().weight
    marks = model.speech_embedding.weight[-MARKS:]
    rows = {"ctc_labels.weight": table[-len(LABELS) :], SPEECH_MARKS: marks}
    found = {name: value.detach().half().contiguous() for name, value in (adapter | rows).items()}
    return found, CtcSettings(len(table) - len(LABELS), LABELS)


def export(model: Path, out: Path, start: Path = Path("build/ear/start")) -> None:
    """Write the parts of a training's newest checkpoint, or of a model's directory."""
    newest = state.newest(model)
    own = checkpoint.load(model if newest is None else start)
    if newest is not None:
        own.load_state_dict(state.load(newest, torch.device("cpu"), mapped=True)["engine"]["model"])
    found, classes = parts_of(own)
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors_file(out / EAR_FILE, found)
    raw = {"pieces": classes.pieces, "labels": list(classes.labels)}
    (out / CLASSES_FILE).write_text(yaml.safe_dump({"ctc": raw}, sort_keys=False), "utf-8")


main = command(export, model="a training, or its `final`")


if __name__ == "__main__":
    sys.exit(main())
