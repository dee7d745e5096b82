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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from osum_echat import logs
from osum_echat.token2wav.flow import Flow, FlowSettings, frames_for
from osum_echat.token2wav.hift import Hift, HiftSettings
from osum_echat.token2wav.model import Token2Wav
from osum_echat.token2wav.voice import MELS, SPEAKER_WIDTH, VoicePrompt

TENSORS = {"flow.pt": 1185, "hift.pt": 227}
PROMPT_TOKENS = 75              # a voice of 3 s
LOOK_EVERY_S = 0.005
DTYPES = ("float32", "bfloat16")    # the latter is for GPUs: on most CPUs it is slower
COLUMNS = (
    "weights", "flow in", "load s", "its CPU s", "held MB", "peak MB", "mapped MB", "speech s",
    "takes s", "its CPU s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One process. Memory is anonymous, above that before loading; mapped: pages of the file."""

    source: str
    dtype: str
    load_s: float
    load_cpu_s: float
    held_mb: float
    peak_mb: float
    mapped_mb: float
    speech_s: float
    synthesis_s: float
    synthesis_cpu_s: float


def split_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vocoder's weights as published: each normed one as a length and a direction."""
    split = {}
    for key, value in tensors.items():
        if key.endswith("weight") and value.dim() == 3 and "source_downs" not in key:
            split[f"{key}_g"] = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            split[f"{key}_v"] = value
        else:
            split[key] = value
    return split


def write_weights(directory: Path) -> Path:
    """The directory of random weights, and its tar beside it; returns the tar."""
    directory.mkdir()
    torch.manual_seed(0)
    contents = {
        "flow.pt": Flow(FlowSettings()).state_dict(),
        "hift.pt": split_norm(Hift(HiftSettings()).state_dict()),
    }
    for name, tensors in contents.items():
        assert len(tensors) == TENSORS[name], f"{name}: {len(tensors)} tensors"
        torch.save(tensors, directory / name)
    path = directory.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(directory, directory.name)
    return path


def memory_mb(kind: str) -> float:
    """RssAnon or RssFile of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {kind} in /proc/self/status: this benchmark needs Linux")


class Clock:
    """Time from here on: on the wall, and of all processors on this process."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds of either."""
        return time.perf_counter() - self.wall_s, time.process_time() - self.cpu_s


class Peak:
    """The most anonymous memory while it watches."""

    def __init__(self) -> None:
        self.start_mb = self.most_mb = memory_mb("RssAnon")
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self) -> None:
        while not self.done.wait(LOOK_EVERY_S):
            self.most_mb = max(self.most_mb, memory_mb("RssAnon"))

    def stop(self) -> float:
        """The rise since the start."""
        self.done.set()
        self.watcher.join()
        return max(self.most_mb, memory_mb("RssAnon")) - self.start_mb


def measure(source: Path, dtype: str, tokens: int) -> Row:
    """Load once, speak once."""
    generator = torch.Generator().manual_seed(1)
    voice = VoicePrompt(
        torch.randint(FlowSettings().codes, (1, PROMPT_TOKENS), generator=generator),
        torch.randn(1, frames_for(PROMPT_TOKENS, FlowSettings().tokens_per_s), MELS,
                    generator=generator),
        torch.randn(1, SPEAKER_WIDTH, generator=generator),
    )  # fmt: skip
    said = torch.randint(FlowSettings().codes, (tokens,), generator=generator).tolist()
    mapped_before, peak = memory_mb("RssFile"), Peak()
    clock = Clock()
    speaker = Token2Wav.load(source, torch.device("cpu"), getattr(torch, dtype))
    load, peak_mb = clock.read(), peak.stop()
    held_mb = memory_mb("RssAnon") - peak.start_mb
    mapped_mb = memory_mb("RssFile") - mapped_before
    clock = Clock()
    wave = speaker(said, voice, seed=0)
    synthesis = clock.read()
    assert wave.isfinite().all()
    return Row(
        "tar" if source.is_file() else "directory", dtype, *load, held_mb, peak_mb, mapped_mb,
        len(wave) / speaker.sample_rate_hz, *synthesis,
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    cells = [
        [row.source, row.dtype, f"{row.load_s:.2f}", f"{row.load_cpu_s:.2f}", f"{row.held_mb:.0f}",
         f"{row.peak_mb:.0f}", f"{row.mapped_mb:.0f}", f"{row.speech_s:.2f}",
         f"{row.synthesis_s:.1f}", f"{row.synthesis_cpu_s:.1f}"]
        for row in rows
    ]  # fmt: skip
    lines = [COLUMNS, *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


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
        logs.out(json.dumps(asdict(measure(Path(source), dtype, chosen.tokens))))
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
            rows.append(Row(**json.loads(found.stdout)))
    logs.out(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
