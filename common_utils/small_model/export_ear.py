"""The trained ear for the whole model: the adapter, and the rows its CTC reads beside the LLM's.

    python -m common_utils.small_model.export_ear --model build/ear/run --out build/export/ear

Writes ear.safetensors in half precision: adapter.*, ctc_labels.weight (labels, width) and
speech_marks (3, width), the second of which, before a clip, is the blank; and ear.yaml: `ctc` of
model.yaml.
"""

import sys
from pathlib import Path

import yaml
from torch import Tensor

from common_utils.small_model.measure_ear import open_model
from common_utils.small_model.pieces import LABELS
from osum_echat import cli
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import MARKS, EChatModel
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


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a training, or its `final`")
    parser.add_argument("--start", type=Path, default=Path("build/ear/start"))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(argv)
    model, _ = open_model(chosen.model, chosen.start)
    found, classes = parts_of(model)
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_safetensors_file(chosen.out / EAR_FILE, found)
    raw = {"pieces": classes.pieces, "labels": list(classes.labels)}
    (chosen.out / CLASSES_FILE).write_text(yaml.safe_dump({"ctc": raw}, sort_keys=False), "utf-8")


if __name__ == "__main__":
    sys.exit(cli.run("export_ear", main))
