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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_utils import make_combine_from_shard, make_shard_from_raw
from common_utils.jobs import Work
from osum_echat import audio
from osum_echat.data.loader import DataSettings, ListSettings, Loader, Place, Windows, open_sources
from osum_echat.data.manifest import open_source
from osum_echat.data.prepare import Draft, Preparer, PrepareSettings
from osum_echat.data.sources import Dropped
from osum_echat.files import write_jsonl
from osum_echat.logs import out, progress, setup
from osum_echat.records import Utterance
from osum_echat.sequence import Batch
from osum_echat.vocab import Vocab

TOKENIZER = Path("pretrained/tiny")
OUTPUT_TYPES = {"understand": "text", "tts": "text2token", "s2s": "speech2text_token",
                "s2s_think": "speech2text_token_think", "t2t": "text2text"}  # fmt: skip
UPSTREAM_LIMITS = (28_000_000, 3700)  # frames and tokens of a batch
STEADY_EPOCHS = 2

CAPS = {
    "speech2text_token": 0.8, "speech2text_token_streaming": 0.6, "speech2text_token_think": 0.6,
    "speech2text_token_history": 0.6, "text2text": 0.6,
}  # fmt: skip
FIXED_TOKENS = 58  # upstream's allowance for the chat marks and system prompt
_NO_PROMPT = "text without a prompt"

RATE_HZ = 16_000
PER_TAR = 100
_UNDERSTANDING = ("", "", " <EMOTION>", " <AGE>", " <GENDER>", " <CAPTION>", " <STYLE>",
                  " <AGE> <GENDER>")  # fmt: skip
_LABELS = {"EMOTION": "<HAPPY>", "AGE": "<ADULT>", "GENDER": "<MALE>", "CAPTION": "<laugh>",
           "STYLE": "<客服>"}  # fmt: skip
_CHARACTERS = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"
_WORDS = "hello music today weather happy phone model".split()


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


def make_corpus(folder: Path, size: int) -> dict[str, Path]:
    """The lists of a corpus by form: raw, shard, combine. Made once, the same each time.

    Voice-like sounds of 2 to 10 s, mixed tasks.
    """
    lists = {"raw": folder / "raw" / "data.list", "shard": folder / "shard" / "shards_list.txt",
             "combine": folder / "combine" / "combines_list.txt"}  # fmt: skip
    done = folder / f"made_{size}"
    if done.exists():
        return lists
    rng = np.random.default_rng(0)
    (folder / "raw" / "audio").mkdir(parents=True, exist_ok=True)
    write_jsonl(lists["raw"], (_row(folder / "raw", number, rng)
                               for number in progress(range(size), "corpus", size)))  # fmt: skip
    make_shard_from_raw.make(lists["raw"], folder / "shard", Work(), PER_TAR)
    make_combine_from_shard.make(lists["shard"], folder / "combine", Work())
    done.touch()
    return lists


def _row(folder: Path, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Of twenty rows 8 understand, 4 speak a text, 6 talk (half of them think), 2 are text only."""
    import soundfile

    place = number % 20
    text = _text(rng, int(rng.integers(10, 40)))
    extra: dict[str, Any] = {}
    row: dict[str, Any] = {"key": f"utt_{number:06d}", "txt": text, "extra": extra}
    if place < 8:
        tags = _UNDERSTANDING[place]
        row["task"] = f"<TRANSCRIBE>{tags}"
        row["txt"] += "".join(_LABELS[tag] for tag in _LABELS if f"<{tag}>" in tags)
    elif place < 18:
        extra["speech_token"] = rng.integers(0, 4096, int(rng.integers(150, 300))).tolist()
        extra |= {"q_txt": _text(rng, 12), "think_str": _text(rng, 60)}
        kind = "" if place < 15 else " <THINK>"
        row["task"] = "<TEXT2TOKEN>" if place < 12 else f"<S2TCHAT> <TEXT2TOKEN>{kind}"
    else:
        row["task"] = "<TEXT2TEXT>"
        extra["question"] = _text(rng, 12)
    suffix = "wav" if number % 2 else "flac"
    row["wav"] = f"audio/{row['key']}.{suffix}"
    soundfile.write(folder / row["wav"], _sound(rng), RATE_HZ, subtype="PCM_16")
    return row


def _text(rng: np.random.Generator, size: int) -> str:
    """Chinese with a twelfth of English words."""
    letters = rng.integers(0, len(_CHARACTERS), size).tolist()
    words = rng.integers(0, 12 * len(_WORDS), size).tolist()
    return "".join(f" {_WORDS[word]} " if word < len(_WORDS) else _CHARACTERS[letter]
                   for letter, word in zip(letters, words, strict=True))  # fmt: skip


def _sound(rng: np.random.Generator) -> np.ndarray:
    """Harmonics under a slow envelope, and noise: 2 to 10 s."""
    samples = int(rng.uniform(2.0, 10.0) * RATE_HZ)
    times = np.arange(samples) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(rng.uniform(100, 250) + 20 * np.sin(3 * times)) / RATE_HZ
    voice = np.sin(phase) + np.sin(2 * phase) / 2 + np.sin(5 * phase) / 5
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 5) * times)
    mixed = 0.1 * voice * envelope + rng.normal(0, 0.005, samples)
    return np.clip(mixed, -1, 1).astype(np.float32)


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
    return {"utterances": len(given), "lost": lost, "first batch s": round(first_s, 2),
            "CPU ms each": round(1000 * used / len(given), 2), "wall s": round(wall, 2),
            "steady: CPU ms": round(1000 * steady_cpu / steady, 2),
            "of it this process": round(1000 * own / steady, 2),
            "a second": round(steady / steady_wall),
            "RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # fmt: skip


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
    paths = [str(tars.with_name(name)) for name in tars.read_text().split()]
    for one in webdataset.WebDataset(paths, shardshuffle=False):
        json.loads(one["extra"])
        count += len(audio.load(one["wav"], None)) > 0
    return count


READERS: dict[str, Callable[[Path], int]] = {"ours": _ours, "webdataset": _webdataset}


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: its number, kind, 10 ms frames, and tokens of label, prompt and speech."""

    number: int
    output_type: str
    frames: int
    label: int
    prompt: int
    speech: int

    @property
    def tokens(self) -> float:
        """Length as upstream counts it: an eighth of the frames, and no rounding."""
        hears = not self.output_type.startswith(("text2token", "text2text"))
        return self.frames / 8 * hears + self.label + self.prompt + self.speech + FIXED_TOKENS


@dataclass(slots=True)
class _Pool:
    samples: list[Sample] = field(default_factory=list)
    frames: int = 0
    tokens: float = 0.0


def upstream_batches(
    samples: Iterable[Sample], frames_limit: int, tokens_limit: int
) -> list[list[Sample]]:
    """The batches that OSUM-EChat's dynamic batching makes, in the order they are given.

    A pool for each output type; a pool is given when one more sample would take it over its limit,
    and what is left at the end is lost but for one pool. The lost ones are left out.
    """
    pools: dict[str, _Pool] = {}
    batches = []
    for sample in samples:
        is_bare = sample.output_type == "text" and sample.prompt == 0
        name = _NO_PROMPT if is_bare else sample.output_type
        pool = pools.setdefault(name, _Pool())
        frames, tokens = max(pool.frames, sample.frames), max(pool.tokens, sample.tokens)
        count = len(pool.samples) + 1
        cap = int(tokens_limit * CAPS.get(name, 1.0))
        if frames * count > frames_limit or tokens * count > cap:
            if pool.samples:
                batches.append(pool.samples)
            pools[name] = _Pool([sample], sample.frames, sample.tokens)
        else:
            pool.samples.append(sample)
            pool.frames, pool.tokens = frames, tokens
    flushed = pools.get("text")
    return [*batches, flushed.samples] if flushed and flushed.samples else batches


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
