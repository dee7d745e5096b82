"""An assistant that answers at once, always the same to the same utterance, for tests of batches.

What it does with an utterance stands in its key: `bad` gives an error, `crash` breaks the whole
batch. NAP_S in the environment makes a batch take so long.
"""

import os
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import batch
from osum_echat.inference.reply import Reply, Timings
from osum_echat.records import Labels, Utterance
from osum_echat.tasks import task_for
from osum_echat.thinking import read_labels
from tests.data.world import write_list, write_world

TIMINGS = Timings(0.0, 0.1, 0.1, 0.1, None, None, 0.2)
RATE_HZ = 22_050


class Answers:
    """Every batch that was asked is kept in `asked`."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def reply_many(
        self, sources: Sequence[Utterance], *, speak: bool = True, **_: Any
    ) -> list[Reply | OsumError]:
        """A reply made of the utterance's own reference."""
        self.asked.append([one.key for one in sources])
        time.sleep(float(os.environ.get("NAP_S", "0")))
        if any("crash" in one.key for one in sources):
            raise RuntimeError("the kernel gave up")
        return [InputError(f"{one.key}: not audio") if "bad" in one.key else answer(one, speak)
                for one in sources]  # fmt: skip


def answer(utterance: Utterance, speak: bool = True) -> Reply:
    """What the reference says, in capital letters."""
    task = task_for(utterance.task)
    text = utterance.user.reply_text or ""
    labels = read_labels(text, task.labels) if task.labels else Labels()
    speaks = task.speaks and speak
    wave = torch.linspace(-0.5, 0.5, 100 + len(text)) if speaks else None
    return Reply(
        task=task.tag, heard=utterance.user.text if task.hears else None, thought=None,
        labels=labels, text=text.upper(), speech_tokens=(1, 2, 3) if speaks else (), wave=wave,
        sample_rate_hz=RATE_HZ if speaks else None, audio_in_s=1.0, timings=TIMINGS,
    )  # fmt: skip


def load(job: Namespace) -> Answers:
    """Stands for the loading of a model."""
    return Answers()


def write_mixed_list(folder: Path, count: int = 6) -> Path:
    """Understanding, speaking and reading in one list, with a broken line and two bad keys."""
    lists = write_world(folder, count)
    rows: list[Any] = []
    for name in ("understand", "tts", "s2s"):
        rows += [line for line in lists[name].read_text().splitlines() if line]
    path = folder / "mixed.list"
    lines = [line.replace('"key": "u', f'"key": "k{at}-u') for at, line in enumerate(rows)]
    lines[2] = lines[2].replace('"k2-', '"bad-')
    lines[7] = lines[7].replace('"k7-', '"crash-')
    lines.insert(4, '{"key": "torn", "wav": ')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_texts(path: Path, count: int) -> Path:
    """A list of questions in writing: quick to answer in numbers."""
    rows = [{"key": f"q{number:04d}", "wav": "none.wav", "task": "<TEXT2TEXT>",
             "txt": f"answer {number}", "extra": {"question": "how many? " * (number % 7 + 1)}}
            for number in range(count)]  # fmt: skip
    return write_list(path, rows)


def job_of(data: Path, out: Path, **options: Any) -> Namespace:
    """Settled options of a batch job."""
    job = batch.parser().parse_args(["--data", str(data), "--out", str(out)])
    return Namespace(**vars(job) | options)
