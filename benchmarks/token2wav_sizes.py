"""How long the published token to wav takes at its full size, and how much memory: prints a table.

    python -m benchmarks.token2wav_sizes [--tokens 250] [--threads 1]

The weights are random and of exactly the published layout (1185 + 227 tensors), written as a
CosyVoice directory and as its tar; each row is a process of its own. Without the ONNX models.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.inference_token2wav import random_voice
from osum_echat import logs
from osum_echat.token2wav.flow import Flow, FlowSettings
from osum_echat.token2wav.hift import Hift, HiftSettings
from osum_echat.token2wav.model import Token2Wav
from tests.token2wav.tiny_flow import split_norm

TENSORS = {"flow.pt": 1185, "hift.pt": 227}
PROMPT_TOKENS = 75              # a voice of 3 s
LOOK_EVERY_S = 0.005
DTYPES = ("float32", "bfloat16")    # the latter is for GPUs: on most CPUs it is slower
COLUMNS = {                     # memory is anonymous, above that before loading
    "weights": "", "flow in": "", "load s": ".2f", "load CPU s": ".2f", "held MB": ".0f",
    "peak MB": ".0f", "mapped MB": ".0f", "speech s": ".2f", "takes s": ".1f", "CPU s": ".1f",
}  # fmt: skip
MB = 1 << 20
Row = dict[str, Any]
Made = TypeVar("Made")


def write_weights(directory: Path) -> Path:
    """The directory of random weights, and its tar beside it; returns the tar."""
    directory.mkdir()
    torch.manual_seed(0)
    hift = split_norm(Hift(HiftSettings()).state_dict(), ("weight_g", "weight_v"))
    contents = {"flow.pt": Flow(FlowSettings()).state_dict(), "hift.pt": hift}
    for name, tensors in contents.items():
        assert len(tensors) == TENSORS[name], f"{name}: {len(tensors)} tensors"
        torch.save(tensors, directory / name)
    path = directory.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(directory, directory.name)
    return path


def resident() -> dict[str, int]:
    """Bytes of this process by kind: RssAnon is its own, RssFile is mapped. Linux alone tells."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024
            for line in lines if line.startswith("Rss")}  # fmt: skip


@dataclass(slots=True)
class Memory:
    """The most memory of this process. own: above that before; whole: with mapped files."""

    before: dict[str, int] = field(default_factory=resident)
    own: int = 0
    whole: int = 0

    def look(self) -> None:
        """Take in the present state."""
        now = resident()
        self.own = max(self.own, now["RssAnon"] - self.before["RssAnon"])
        self.whole = max(self.whole, sum(now.values()))


@contextmanager
def watched() -> Iterator[Memory]:
    """Inside, look at the memory time and again."""
    memory, done = Memory(), threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY_S):
            memory.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.look()


def timed(work: Callable[[], Made]) -> tuple[Made, float, float]:
    """What a piece of work made, its seconds on the wall, and those of all processors."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - wall_s, time.process_time() - cpu_s


def measure(source: Path, dtype: str, tokens: int) -> Row:
    """Load once, speak once."""
    torch.manual_seed(1)
    voice = random_voice(PROMPT_TOKENS)
    said = torch.randint(FlowSettings().codes, (tokens,)).tolist()
    with watched() as memory:
        speaker, *load_s = timed(
            lambda: Token2Wav.load(source, torch.device("cpu"), getattr(torch, dtype))
        )
    held, mapped = (resident()[name] - memory.before[name] for name in ("RssAnon", "RssFile"))
    wave, *takes_s = timed(lambda: speaker(said, voice, seed=0))
    assert wave.isfinite().all()
    kind, speech_s = "tar" if source.is_file() else "directory", len(wave) / speaker.sample_rate_hz
    sizes_mb = (size / MB for size in (held, memory.own, mapped))
    values = kind, dtype, *load_s, *sizes_mb, speech_s, *takes_s
    return dict(zip(COLUMNS, values, strict=True))


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [list(COLUMNS)]
    lines += [[f"{row[name]:{form}}" for name, form in COLUMNS.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
                     for line in lines)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="token2wav_sizes", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=250, help="to speak (default: 250, 10 s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES[:1])
    parser.add_argument("--part", nargs=2, metavar=("SOURCE", "DTYPE"), help="one row, as JSON")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)
    if chosen.part:
        source, dtype = chosen.part
        logs.out(json.dumps(measure(Path(source), dtype, chosen.tokens)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as place:
        tar = write_weights(Path(place) / "CosyVoice-300M-25Hz")
        sources = (tar.with_suffix(""), tar)
        parts = [(source, dtype) for source in sources for dtype in chosen.dtypes]
        for source, dtype in logs.progress(parts, "measuring"):
            command = [sys.executable, "-m", "benchmarks.token2wav_sizes", "--part", str(source),
                       dtype, "--tokens", str(chosen.tokens), "--threads", str(chosen.threads)]
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(found.stdout))
    logs.out(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
