"""The thinker: rows to learn from, the model before its training, and what that changed.

    python -m common_utils.small_model.thinker lists --parts build/parts --out build/thinker/rows
    python -m common_utils.small_model.thinker start --llm DIR --ear DIR --out build/thinker/start
    python -m common_utils.small_model.thinker export --run build/thinker/stage3 --out DIR

`lists`: the rows of stage 3 as raw lists without sound, one list a task, to train and to check;
words and labels stand in for sound (prepare.audio_as_text).
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from common_utils.command import command
from common_utils.small_model.dialogues import Example, examples
from common_utils.small_model.manner import NO_EVENT
from common_utils.small_model.pieces import heard_words
from common_utils.small_model.ranking import Ranker
from common_utils.small_model.topics import sentence
from common_utils.tiny_world import lists as tiny
from common_utils.tiny_world.world import fraction
from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.files import write_jsonl
from osum_echat.logs import logger
from osum_echat.models import checkpoint
from osum_echat.models.echat import MARKS, EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.models.lora import LoraSettings
from osum_echat.models.pretrained import llm_settings, start_llm
from osum_echat.records import LIST_KEYS
from osum_echat.training import state

CHECK_SHARE = 0.02  # of the examples, that are not trained on
TAGS = tiny.SPEECH_TAGS | tiny.TEXT_TAGS
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


def row(example: Example, tag: str) -> dict[str, Any]:
    """One object of a raw list."""
    extra: dict[str, Any] = {"q_txt": example.heard}
    named = {key: getattr(example.labels, field) for field, key in LIST_KEYS.items()}
    extra |= {name: value for name, value in named.items() if value}
    if tag in (TAGS["s2s_think"], TAGS["s2t_think"]):
        extra["think_str"] = example.thought
    made = {"key": f"{example.key}", "txt": example.reply, "task": tag, "extra": extra}
    for number, (said, reply) in enumerate(example.earlier, start=1):
        made[f"wav_{number}"], made[f"txt_{number}"] = tiny.TEXT_ONLY, reply
        extra[f"q_txt_{number}"] = (heard_words(said) or "").strip()
    return made


def understanding(example: Example) -> dict[str, Any]:
    """A row that asks for words and labels."""
    labels = example.labels
    tags = "".join(
        f"<{label}>" for label in (labels.event, labels.age, labels.gender, labels.emotion)
    )
    return row(example, tiny.FULL_TAG) | {"txt": example.heard + tags}


def lists(found: Iterable[Example], rng: Random) -> dict[str, list[dict[str, Any]]]:
    """Rows by list: each example once with a thought, and some again without or in writing."""
    rows: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, made: dict[str, Any]) -> None:
        rows.setdefault(name, []).append(made | {"key": f"{made['key']}-{name}"})

    for one in found:
        if one.earlier:
            add("history", row(one, tiny.HISTORY_TAG))
            continue
        name = rng.choices(("s2s_think", "s2t_think"), weights=(0.75, 0.25))[0]
        add(name, row(one, TAGS[name]))
        if rng.random() < 0.45:
            name = rng.choices(("s2s", "s2t"), weights=(0.75, 0.25))[0]
            add(name, row(one, TAGS[name]))
        unheard = one.labels.emotion in (None, "NEUTRAL") and one.labels.event in (None, NO_EVENT)
        if one.question and unheard and rng.random() < 0.3:
            made = row(one, tiny.T2T_TAG)
            made["extra"]["question"] = sentence(one.question)
            add("t2t", made)
        if one.question and one.labels.age and rng.random() < 0.05:
            add("understand", understanding(one))
    return rows


def write_lists(found: list[Example], out: Path, seed: int = 0) -> dict[str, int]:
    """Write train/*.list and check/*.list; returns the sizes of the training lists."""
    sizes = {}
    held = [one for one in found if fraction(f"check {one.key}") < CHECK_SHARE]
    for split, own in (("check", held), ("train", [one for one in found if one not in held])):
        for name, rows in lists(own, Random(f"lists {seed}")).items():
            Random(f"order {seed}").shuffle(rows)
            sizes[name] = write_jsonl(out / split / f"{name}.list", rows)
    return sizes


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


def make(
    what: Literal["lists", "start", "export"], /, out: Path, parts: Path = Path("build/parts"),
    stock: Path | None = None, seed: int = 0, llm: Path = Path("build/parts/smollm2"),
    ear: Path = Path("build/ear/start"), run: Path = Path("build/thinker/stage3"),
) -> None:  # fmt: skip
    """Write OUT."""
    if what == "start":
        start(llm, ear, out)
    elif what == "export":
        export(run, out)
    else:
        found = examples(parts, seed, ranker=None if stock is None else Ranker(stock))
        sizes = write_lists(found, out, seed)
        for told, counts in (("examples", Counter(one.source for one in found)), ("rows", sizes)):
            counted = ", ".join(f"{name} {size}" for name, size in counts.items())
            log.info("%s: %s", told, counted)


main = command(
    make, parts="what parts.py unpacked", llm="SmolLM2 as a Qwen2 directory", ear="its start",
    stock="the stock LLM, which chooses replies that fit (10 CPU minutes)",
    run="the output of train.py",
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
