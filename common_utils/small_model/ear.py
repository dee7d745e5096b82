"""The ear of the small model: what its frozen encoder makes of lists, and the trained ear's parts.

    python -m common_utils.small_model.ear caches --model build/ear/start --out build/ear/features
        --lists build/ear/people build/ear/made
    python -m common_utils.small_model.ear export --model build/ear/run --out build/export/ear

`caches`: for each list a file that training maps; a list whose file is newer than itself, and of
the same encoder, is not heard again. `export`: ear.safetensors in half precision: adapter.*,
ctc_labels.weight (labels, width) and speech_marks (3, width), the second of which, before a clip,
is the blank; and ear.yaml: `ctc` of model.yaml.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor

from common_utils.command import command
from common_utils.small_model.pieces import LABELS
from common_utils.small_model.waves import clips, lists_in
from osum_echat import device as devices
from osum_echat.logs import logger
from osum_echat.models import checkpoint
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import MARKS, EChatModel
from osum_echat.models.encoder_cache import EncoderCache
from osum_echat.training import state
from osum_echat.training.engine import compute_dtype
from osum_echat.weights import write_safetensors_file

TOGETHER_FRAMES = 4800  # of the clips that are heard at once
WINDOW = 256  # clips that are sorted by length
LIMIT_BYTES = 1 << 40
EAR_FILE, CLASSES_FILE, SPEECH_MARKS = "ear.safetensors", "ear.yaml", "speech_marks"

log = logger(__name__)


def groups(found: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    """Clips of like length, for as many as are heard at once."""
    while waiting := list(islice(found, WINDOW)):
        group: list[Tensor] = []
        for clip in sorted(waiting, key=len):
            if group and len(clip) * (len(group) + 1) > TOGETHER_FRAMES:
                yield group
                group = []
            group.append(clip)
        yield group


def listen(model: Path, out: Path, lists: tuple[Path, ...]) -> None:
    """Write a file of caches for each list."""
    torch.set_num_threads(1)
    own, cpu = checkpoint.load(model), torch.device("cpu")
    out.mkdir(parents=True, exist_ok=True)
    for path in lists_in(lists):
        target = out / f"{path.parent.name}_{path.stem}.safetensors"
        cache, frames = EncoderCache(own.encoder, LIMIT_BYTES), 0
        is_newer = target.is_file() and target.stat().st_mtime > path.stat().st_mtime
        if is_newer and cache.load(target):
            continue
        for group in groups(mel for _, mel in clips(path, own.settings.encoder.mels)):
            with devices.autocast(cpu, compute_dtype("auto", cpu)):
                cache.fill(group)
            frames += sum(map(len, group))
        cache.save(target)
        log.info("%s: %.2f h", target, frames / 360_000)


def parts_of(model: EChatModel) -> tuple[dict[str, Tensor], CtcSettings]:
    """What the whole model takes over from the one that the ear was trained in."""
    adapter = {f"adapter.{name}": value for name, value in model.adapter.state_dict().items()}
    table = model.llm.get_input_embeddings().weight
    marks = model.speech_embedding.weight[-MARKS:]
    rows = {"ctc_labels.weight": table[-len(LABELS) :], SPEECH_MARKS: marks}
    found = {name: value.detach().half().contiguous() for name, value in (adapter | rows).items()}
    return found, CtcSettings(len(table) - len(LABELS), LABELS)


def export(model: Path, out: Path, start: Path) -> None:
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


def make(
    what: Literal["caches", "export"], /, model: Path, out: Path, lists: tuple[Path, ...] = (),
    start: Path = Path("build/ear/start"),
) -> None:  # fmt: skip
    """Write OUT."""
    if what == "caches":
        listen(model, out, lists)
    else:
        export(model, out, start)


main = command(make, model="whose encoder hears; or a training, or its `final`",
               lists="folders of lists")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
