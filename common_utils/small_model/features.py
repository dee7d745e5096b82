"""What the frozen encoder makes of every clip of lists, made once, in files that training maps.

    python -m common_utils.small_model.features --model build/ear/start --out build/ear/features
        --lists build/ear/people build/ear/made

A list has one file; a list whose file is newer than itself, and of the same encoder, is not heard
again.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from common_utils.command import command
from common_utils.small_model.waves import clips, lists_in
from osum_echat import device as devices
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


main = command(listen, model="whose encoder hears", lists="folders of lists")


if __name__ == "__main__":
    sys.exit(main())
