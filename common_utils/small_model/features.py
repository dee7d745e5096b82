"""What the frozen encoder makes of every clip of lists, made once, in files that training maps.

    python -m common_utils.small_model.features --model build/ear/start --out build/ear/features \\
        build/ear/people/train_0.list ... [--lists FOLDER ...]

A list has one file; a list whose file is newer than itself, and of the same encoder, is not heard
again.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from common_utils.small_model.measure_ear import clips
from osum_echat import cli
from osum_echat import device as devices
from osum_echat.errors import InputError
from osum_echat.logs import logger
from osum_echat.models import checkpoint
from osum_echat.models.encoder_cache import EncoderCache
from osum_echat.training.engine import compute_dtype

TOGETHER_FRAMES = 4800  # of the clips that are heard at once
WINDOW = 256  # clips that are sorted by length
LIMIT_BYTES = 1 << 40

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


def is_joined(path: Path) -> bool:
    """Whether a list holds what the lists beside it hold already."""
    return bool(list(path.parent.glob(f"{path.stem}_[0-9][0-9][0-9].list")))


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="whose encoder hears")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("lists", type=Path, nargs="*")
    parser.add_argument("--lists", dest="folders", type=Path, nargs="*", default=[],
                        help="folders of lists")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = checkpoint.load(chosen.model)
    cpu = torch.device("cpu")
    chosen.out.mkdir(parents=True, exist_ok=True)
    every = [one for folder in chosen.folders for one in sorted(folder.glob("*.list"))]
    if not (chosen.lists or every):
        raise InputError(f"no *.list in {', '.join(map(str, chosen.folders)) or 'no folder'}; give "
                         "lists, or folders of lists")  # fmt: skip
    for path in (*chosen.lists, *(one for one in every if not is_joined(one))):
        target = chosen.out / f"{path.parent.name}_{path.stem}.safetensors"
        cache, frames = EncoderCache(model.encoder, LIMIT_BYTES), 0
        if not path.is_file():
            raise InputError(f"{path}: no such file; give raw lists")
        is_newer = target.is_file() and target.stat().st_mtime > path.stat().st_mtime
        if is_newer and cache.load(target):
            continue
        for group in groups(mel for _, mel in clips(path, model.settings.encoder.mels)):
            with devices.autocast(cpu, compute_dtype("auto", cpu)):
                cache.fill(group)
            frames += sum(map(len, group))
        cache.save(target)
        log.info("%s: %.2f h", target, frames / 360_000)


if __name__ == "__main__":
    sys.exit(cli.run("features", main))
