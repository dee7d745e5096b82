"""How fast, how lean and how whole the data pipeline is, on a corpus made for it.

    python -m benchmarks.data_loading --folder build/data_loading [--size 2000]

CPU seconds are those of all processes together; other work on the machine changes wall seconds
most. webdataset reads the same tars where it is installed (requirements-bench.txt).
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.speech_corpus import make_corpus
from benchmarks.upstream_batches import Sample, upstream_batches
from osum_echat import audio
from osum_echat.data.loader import DataSettings, ListSettings, Loader, Place, Windows, open_sources
from osum_echat.data.manifest import open_source
from osum_echat.data.prepare import Draft, Preparer, PrepareSettings
from osum_echat.data.sources import Dropped
from osum_echat.logs import out, setup
from osum_echat.records import Utterance
from osum_echat.sequence import Batch
from osum_echat.vocab import Vocab

TOKENIZER = Path("pretrained/tiny")
OUTPUT_TYPES = {"understand": "text", "tts": "text2token", "s2s": "speech2text_token",
                "s2s_think": "speech2text_token_think", "t2t": "text2text"}  # fmt: skip
UPSTREAM_LIMITS = (28_000_000, 3700)  # frames and tokens of a batch
STEADY_EPOCHS = 2


def main(argv: list[str] | None = None) -> None:
    """Make the corpus, measure each case in a process of its own, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/data_loading"))
    parser.add_argument("--size", type=int, default=2000, help="utterances of the corpus")
    parser.add_argument("--case", help="measure this one alone and print it as JSON")
    chosen = parser.parse_args(argv)
    setup()
    torch.set_num_threads(1)
    lists = make_corpus(chosen.folder, chosen.size)
    if chosen.case:
        name, *rest = chosen.case.split(":")
        out(json.dumps(CASES[name](lists, *rest)))
        return
    loading = [f"load:{form}:{workers}" for form in lists for workers in (0, 1, 2)]
    reading = [f"read:{name}" for name in READERS]
    for title, cases in (("Loading", loading), ("Decoding only", reading), ("Rows", ["waste"])):
        out(f"\n{title}")
        for case in cases:
            _print(case, chosen)


def _print(case: str, chosen: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "benchmarks.data_loading", "--folder", str(chosen.folder),
               "--size", str(chosen.size), "--case", case]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        out(f"| {case} | {result.stderr.strip().splitlines()[-1]} |")
        return
    found = json.loads(result.stdout.strip().splitlines()[-1])
    out(f"| {case} | " + " | ".join(f"{name} {value}" for name, value in found.items()) + " |")


def _preparer() -> Preparer:
    """The published pipeline's settings: masks, substitutes and all."""
    settings = PrepareSettings(max_tokens=4000, time_masks=2, band_masks=2, speech_per_text=0.0)
    return Preparer(settings, Vocab.from_directory(TOKENIZER), 80)


def _settings(path: Path, workers: int = 0) -> DataSettings:
    lists = {"corpus": ListSettings(str(path))}
    return DataSettings(lists=lists, row_tokens=3700, workers=workers, prefetch=2 if workers else 0)


def load(lists: dict[str, Path], form: str, workers: str) -> dict[str, Any]:
    """An epoch to batches, the start of the workers in it, and two more for the steady state.

    A pass before them fills the page cache.
    """
    for _ in _pass(open_source(form, str(lists[form]))):
        pass
    settings = _settings(lists[form], int(workers))
    loader = Loader(open_sources(settings), _preparer(), settings, seed=1)
    start, cpu = time.monotonic(), _cpu()
    given, first_s = _epoch(loader)
    wall, used = time.monotonic() - start, _cpu() - cpu
    lost = loader.drops.read - len(given)
    start, cpu, own = time.monotonic(), _cpu(), time.process_time()
    for _ in range(STEADY_EPOCHS):
        _epoch(loader)
    steady = STEADY_EPOCHS * len(given)
    steady_wall, steady_cpu = time.monotonic() - start, _cpu() - cpu
    own = time.process_time() - own
    loader.close()
    return {
        "utterances": len(given), "lost": lost, "first batch s": round(first_s, 2),
        "CPU ms each": round(1000 * used / len(given), 2), "wall s": round(wall, 2),
        "steady: CPU ms": round(1000 * steady_cpu / steady, 2),
        "of it this process": round(1000 * own / steady, 2),
        "a second": round(steady / steady_wall),
        "RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def _epoch(loader: Loader) -> tuple[set[tuple[str, str]], float]:
    """Keys and tasks of the batches up to the end of an epoch, and the seconds to the first one."""
    start, epoch, first_s = time.monotonic(), loader.epoch, None
    given: set[tuple[str, str]] = set()
    while loader.epoch == epoch:
        batch: Batch = next(loader)
        first_s = first_s or time.monotonic() - start
        given |= {pair for row in zip(batch.keys, batch.tasks, strict=True)
                  for pair in zip(*row, strict=True)}  # fmt: skip
    return given, first_s or 0.0


def _cpu() -> float:
    """CPU seconds of this process and of its workers, those that live and those that ended."""
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    used = os.times()
    ended = used.children_user + used.children_system
    return used.user + used.system + ended + ticks / os.sysconf("SC_CLK_TCK")


def _pass(source: Any) -> Iterator[Utterance | Dropped]:
    yield from map(source.read, range(len(source)))


def read(lists: dict[str, Path], name: str) -> dict[str, Any]:
    """Every utterance of the tars, its sound decoded; the best of three passes after a warm-up."""
    if name != "ours" and importlib.util.find_spec(name) is None:
        return {"not installed": name}
    best, count = float("inf"), READERS[name](lists["shard"])
    for _ in range(3):
        cpu = time.process_time()
        count = READERS[name](lists["shard"])
        best = min(best, time.process_time() - cpu)
    return {"utterances": count, "per CPU s": round(count / best)}


def _ours(tars: Path) -> int:
    read = _pass(open_source("shard", str(tars)))
    return sum(len(audio.load(one.user.audio, None)) > 0 for one in read
               if isinstance(one, Utterance) and isinstance(one.user.audio, bytes))  # fmt: skip


def _webdataset(tars: Path) -> int:
    """As its users read: samples of members by postfix; decoded as we decode, `extra` parsed."""
    import webdataset

    count = 0
    for one in webdataset.WebDataset(tars.read_text().split(), shardshuffle=False):
        json.loads(one["extra"])
        count += len(audio.load(one["wav"], None)) > 0
    return count


READERS: dict[str, Callable[[Path], int]] = {"ours": _ours, "webdataset": _webdataset}


def waste(lists: dict[str, Path]) -> dict[str, Any]:
    """The share of tokens that is padding: packed, bucketed, and batched as upstream does."""
    found: dict[str, Any] = {}
    preparer = _preparer()
    for layout in ("packed", "bucketed"):
        base = _settings(lists["raw"])
        settings = DataSettings(lists=base.lists, row_tokens=base.row_tokens, layout=layout)
        windows = Windows(open_sources(settings), preparer, settings, seed=1)
        padded, used = 0.0, 0.0
        for window in windows.after(Place()):
            for rows in windows.lay_out(window)[0]:
                lengths = [sum(map(len, row)) for row in rows]
                padded, used = padded + len(rows) * max(lengths), used + sum(lengths)
            if window.is_last:
                break
        found[f"{layout} %"] = round(100 * (1 - used / padded), 2)
    samples = list(_samples(lists["raw"], preparer))
    batches = upstream_batches(samples, *UPSTREAM_LIMITS)
    used = sum(one.tokens for batch in batches for one in batch)
    padded = sum(len(batch) * max(one.tokens for one in batch) for batch in batches)
    found["upstream %"] = round(100 * (1 - used / padded), 2)
    found["upstream loses"] = len(samples) - sum(map(len, batches))
    return found


def _samples(path: Path, preparer: Preparer) -> Iterator[Sample]:
    """The corpus as upstream's batching sees it, shuffled and sorted in blocks as there."""
    drafts = []
    for number, one in enumerate(_pass(open_source("raw", str(path)))):
        draft = preparer.draft(one, random.Random(number)) if isinstance(one, Utterance) else one
        if isinstance(draft, Draft):
            drafts.append((number, draft))
    random.Random(0).shuffle(drafts)
    for start in range(0, len(drafts), 500):
        block = drafts[start : start + 500]
        for number, draft in sorted(block, key=lambda one: sum(one[1].frames)):
            frames = sum(draft.frames)
            label = len(draft) - frames // 8
            yield Sample(number, OUTPUT_TYPES[draft.row.task], frames, label, 0, 0)


CASES: dict[str, Callable[..., dict[str, Any]]] = {"load": load, "read": read, "waste": waste}

if __name__ == "__main__":
    main()
