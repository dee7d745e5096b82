"""How soon the small model speaks, how fast it writes, and what memory its process takes.

    python -m benchmarks.small_timing --model DIR --wav FILE [--threads 2] [--times 3]

Prints JSON: seconds after the call, CPU seconds beside them. In a process of its own, so that the
memory is that of the model alone.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from osum_echat import cli, logs
from osum_echat import device as devices
from osum_echat.generation.kv_cache import CachedLLM
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import AudioPiece, Done

PROMPT_TOKENS, STEPS = 100, 60
WAYS = {"no thought": {"task": "s2s"}, "label thought": {"task": "s2s_think", "thinking": "label"}}


def answered(assistant: EChat, wav: Path, way: dict[str, Any]) -> dict[str, float]:
    """One reply: seconds to its first sound, by the clock and of the CPU, and of all of it."""
    start, cpu = time.perf_counter(), time.process_time()
    found: dict[str, float] = {}
    for event in assistant.stream(wav, greedy=True, **way):
        if isinstance(event, AudioPiece) and not found:
            found = {"first_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        if isinstance(event, Done) and event.reply.audio_out_s:
            found["whole_by_length"] = (time.perf_counter() - start) / event.reply.audio_out_s
    return found


@torch.inference_mode()
def tokens_a_second(assistant: EChat) -> dict[str, float]:
    """How fast ids follow each other: forward step, head, choice."""
    network, numbers = assistant.network, torch.arange(300, 300 + PROMPT_TOKENS)
    llm = CachedLLM(network.llm, [network.embed_ids(numbers)])
    number, taken = 5, []
    for _ in range(STEPS):
        start, cpu = time.perf_counter(), time.process_time()
        llm.step(network.embed_ids(torch.tensor([number])))
        number = int(network.logits_text(llm.state)[0].argmax())
        taken.append((time.perf_counter() - start, time.process_time() - cpu))
    clock, cpu_s = zip(*taken, strict=True)
    return {"tokens_s": 1 / statistics.median(clock), "tokens_cpu_s": 1 / statistics.median(cpu_s)}


def measure(chosen: argparse.Namespace) -> None:
    """Print all figures."""
    torch.set_num_threads(chosen.threads)
    assistant = EChat.load(chosen.model, device="cpu", dtype=chosen.dtype)
    found: dict[str, Any] = {"load_s": assistant.load_s}
    for name, way in WAYS.items():
        answered(assistant, chosen.wav, way)
        runs = [answered(assistant, chosen.wav, way) for _ in range(chosen.times)]
        found[name] = {key: statistics.median(run[key] for run in runs if key in run)
                       for key in runs[0]}  # fmt: skip
    found |= tokens_a_second(assistant)
    found["memory_gb"] = devices.peak_memory_bytes(torch.device("cpu")) / 1e9
    logs.out(json.dumps(found))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR")
    add("--wav", type=Path, required=True, metavar="FILE", help="a question of some 3 s")
    add("--threads", type=int, default=2)
    add("--times", type=int, default=3)
    add("--dtype", default="auto")
    chosen = parser.parse_args(argv)
    return cli.run("small_timing", lambda: measure(chosen))


if __name__ == "__main__":
    sys.exit(main())
