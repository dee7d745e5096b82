"""How fast, how lean and how whole the data pipeline is, on a corpus made for it.

    python -m benchmarks.data_loading --folder build/data_loading [--size 2000]

CPU seconds are those of all processes together; other work on the machine changes wall seconds
only. webdataset and lhotse read the same tars where they are installed.
"""

import argparse
import importlib.util
import io
import json
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
from osum_echat.audio import decode
from osum_echat.data.loader import DataSettings, ListSettings, Loader, open_sources
from osum_echat.data.manifest import open_source
from osum_echat.data.prepare import Draft, Preparer
from osum_echat.data.settings import PrepareSettings
from osum_echat.data.sources import Dropped
from osum_echat.data.windows import Place, Windows
from osum_echat.logs import out, setup
from osum_echat.records import Utterance
from osum_echat.sequence import Batch
from osum_echat.vocab import Vocab

TOKENIZER = Path("pretrained/tiny")
OUTPUT_TYPES = {"understand": "text", "tts": "text2token", "s2s": "speech2text_token",
                "s2s_think": "speech2text_token_think", "t2t": "text2text"}  # fmt: skip
UPSTREAM_LIMITS = (28_000_000, 3700)  # frames and tokens of a batch


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
    reading = [f"read:{reader}" for reader in ("ours", "webdataset", "lhotse")]
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
    """One epoch to batches, after a warm-up that fills the page cache."""
    for _ in _pass(open_source(form, str(lists[form]))):
        pass
    settings = _settings(lists[form], int(workers))
    loader = Loader(open_sources(settings), _preparer(), settings, seed=1)
    start, cpu = time.monotonic(), _cpu()
    keys: set[tuple[str, str]] = set()
    first = None
    while not keys or loader.epoch == 0:
        batch: Batch = next(loader)
        first = first or time.monotonic() - start
        keys |= {pair for row in zip(batch.keys, batch.tasks, strict=True)
                 for pair in zip(*row, strict=True)}  # fmt: skip
    wall = time.monotonic() - start
    loader.close()
    read = loader.drops.read
    return {
        "utterances": len(keys), "lost": read - len(keys), "first batch s": round(first or 0, 2),
        "CPU ms each": round(1000 * (_cpu() - cpu) / len(keys), 2), "wall s": round(wall, 2),
        "RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def _cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _pass(source: Any) -> Iterator[Utterance | Dropped]:
    for unit in range(len(source)):
        yield from source.read(unit)


def read(lists: dict[str, Path], reader: str) -> dict[str, Any]:
    """Every utterance of the tars, its sound decoded; the better of three passes."""
    if reader != "ours" and importlib.util.find_spec(reader) is None:
        return {"not installed": reader}
    read_all = READERS[reader](lists["shard"])
    read_all()
    best = float("inf")
    for _ in range(3):
        cpu = time.process_time()
        count = read_all()
        best = min(best, time.process_time() - cpu)
    return {"utterances": count, "per CPU s": round(count / best)}


def _ours(tars: Path) -> Callable[[], int]:
    source = open_source("shard", str(tars))

    def read_all() -> int:
        count = 0
        for one in _pass(source):
            if isinstance(one, Utterance) and isinstance(one.user.audio, bytes):
                count += len(decode(one.user.audio)[0]) > 0
        return count

    return read_all


def _webdataset(tars: Path) -> Callable[[], int]:
    import webdataset

    def read_all() -> int:
        files = tars.read_text().split()
        data = webdataset.WebDataset(files, shardshuffle=False)
        return sum(len(decode(one["wav"])[0]) > 0 and bool(json.loads(one["extra"]) or 1)
                   for one in data)  # fmt: skip

    return read_all


def _lhotse(tars: Path) -> Callable[[], int]:
    """Its own tar reader; its cuts need a manifest of another kind than these tars hold."""
    from lhotse.shar.readers.tar import TarIterator

    def read_all() -> int:
        count = 0
        for tar in tars.read_text().split():
            for data, path in TarIterator(tar):
                if str(path).endswith(".wav"):
                    count += len(decode(io.BytesIO(data).getvalue())[0]) > 0
                elif str(path).endswith(".extra"):
                    json.loads(data)
        return count

    return read_all


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


READERS = {"ours": _ours, "webdataset": _webdataset, "lhotse": _lhotse}
CASES: dict[str, Callable[..., dict[str, Any]]] = {"load": load, "read": read, "waste": waste}

if __name__ == "__main__":
    main()
