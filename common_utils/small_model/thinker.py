"""The thinker before its training, and what its training changed, as small files.

python -m common_utils.small_model.thinker start --llm DIR --ear DIR --out build/thinker/start
python -m common_utils.small_model.thinker export --run build/thinker/stage3 --out DIR
"""

import json
import sys
from pathlib import Path

import torch

from osum_echat import cli, weights
from osum_echat.errors import CheckpointError
from osum_echat.logs import logger
from osum_echat.models import checkpoint
from osum_echat.models.echat import MARKS, EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.models.lora import LoraSettings
from osum_echat.models.pretrained import llm_settings, start_llm
from osum_echat.training import state

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
PIECES = 2252  # rows of the text table that the ear spells with: 252 bytes and marks, 2,000 merges
LORA = LoraSettings(  # as in conf/small/stage3_empathy.yaml
    rank=16, alpha=32, dropout=0.0, top_layers=14,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)  # fmt: skip
LORA_FILE = "lora.safetensors"
# Never run: words and labels stand in for sound while the thinker trains.
NO_ENCODER = EncoderSettings(mels=80, width=64, heads=2, units=64, blocks=1, dropout=0.0)
NO_ADAPTER = AdapterSettings(heads=2, units=64, blocks=1, dropout=0.0)
MARK_TABLE = "speech_embedding.weight"

log = logger(__name__)


def start(llm: Path, ear: Path, out: Path, codes: int = 500, seed: int = 1) -> None:
    """A model of the stock LLM with the ear's marks around audio, one of which is its blank."""
    torch.manual_seed(seed)
    model = EChatModel(EChatSettings(NO_ENCODER, NO_ADAPTER, llm_settings(llm), codes))
    start_llm(model, llm)
    marks = weights.read(ear / weights.WEIGHTS_FILE)[MARK_TABLE][-MARKS:].float()
    with torch.no_grad():
        model.speech_embedding.weight[-MARKS:] = marks
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, model, dtype=torch.float32)
    for name in TOKENIZER_FILES:
        (out / name).write_bytes((llm / name).read_bytes())


def export(run: Path, out: Path) -> None:
    """The LoRA layers of a run's newest checkpoint in fp16, and how they were trained."""
    newest = state.newest(run)
    if newest is None:
        raise CheckpointError(f"{run}: no checkpoint; train it first by stage3_empathy.yaml")
    saved = state.load(newest, torch.device("cpu"))
    layers = {name.replace(".default.", "."): value.half().contiguous()
              for name, value in saved["engine"]["model"].items() if "lora_" in name}  # fmt: skip
    if not layers:
        raise CheckpointError(
            f"{newest}: no LoRA layers: the whole LLM was trained; to go on from a model that has "
            "some, give stage.lora=null keep_lora=true"
        )
    out.mkdir(parents=True, exist_ok=True)
    weights.write_safetensors_file(out / LORA_FILE, layers)
    size = (out / LORA_FILE).stat().st_size / 1e6
    step, minutes = (saved["progress"][name] for name in ("step", "minutes"))
    told = {"step": step, "minutes": round(minutes, 1), "megabytes": round(size, 2),
            "tensors": len(layers)}  # fmt: skip
    (out / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    log.info("%s: %s", out, told)


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("start")
    first.add_argument("--llm", type=Path, required=True, help="SmolLM2 as a Qwen2 directory")
    first.add_argument("--ear", type=Path, required=True, help="the ear's directory")
    first.add_argument("--out", type=Path, required=True)
    last = commands.add_parser("export")
    last.add_argument("--run", type=Path, required=True, help="the output of train.py")
    last.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(argv)
    if chosen.command == "start":
        start(chosen.llm, chosen.ear, chosen.out)
    else:
        export(chosen.run, chosen.out)


if __name__ == "__main__":
    sys.exit(cli.run("thinker", main))
