"""An assistant that speaks at once, always the same to the same query, and its little test sets."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch

from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import __main__ as door
from osum_echat.evaluation.runner import Model
from osum_echat.inference.reply import AudioPiece, Done, Reply, TextPiece, Timings
from osum_echat.paths import TINY
from osum_echat.records import Labels, Utterance

RATE_HZ = 22_050
LABELS = Labels("CHILD", "MALE", "SAD", "COUGH", "SOFT")
TIMINGS = Timings(0.5, 0.2, 0.1, 0.4, 0.6, 1.0, 1.5)


def tone(pitch_hz: float, seconds: float, rate_hz: int) -> torch.Tensor:
    times = torch.arange(int(seconds * rate_hz)) / rate_hz
    glide = pitch_hz * 2 ** (0.2 * torch.sin(6 * times))
    phase = 2 * torch.pi * torch.cumsum(glide, 0) / rate_hz
    return 0.1 * sum(torch.sin(k * phase) / k for k in range(1, 6))


def write_wav(path: Path, pitch_hz: float = 150.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(pitch_hz, 0.5, 16_000).numpy().astype(np.float32), 16_000)
    return path


@dataclass
class Spoken:
    """answers: text of the reply by the stem of the wav, else a fixed one. stop_after: of the kill.
    """

    answers: dict[str, str] = field(default_factory=dict)
    stop_after: int | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    thinking: str = "both"
    voice: Any = field(default_factory=lambda: SimpleNamespace(source=TINY / "token2wav"))
    load_s: float = 0.5
    network: Any = field(default_factory=lambda: SimpleNamespace(
        settings=SimpleNamespace(encoder=SimpleNamespace(mels=80)), device=torch.device("cpu")))

    def reply(
        self, source: Any, *, task: str, thinking: str | None = None, seed: int = 0,
        speak: bool = True, **_: Any,
    ) -> Reply:  # fmt: skip
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append({"task": task, "thinking": thinking, "seed": seed, "source": source})
        name = name_of(source)
        if "bad" in name:
            raise InputError(f"{name}: not audio")
        speaks = speak and ("s2s" in task or "tts" in task)
        wave = tone(100 + seed % 100, 0.4, RATE_HZ) if speaks else None
        thought = {"label": "The user said: x, age: <CHILD>", "natural": "I hear a boy."}.get(
            thinking or "")  # fmt: skip
        return Reply(
            task=task, heard=f"words of {name}", thought=thought, labels=LABELS,
            text=self.answers.get(name, "Bless you, little one."),
            speech_tokens=(1, 2) if speaks else (), wave=wave,
            sample_rate_hz=RATE_HZ if speaks else None, audio_in_s=0.5, timings=TIMINGS,
        )  # fmt: skip

    def reply_many(
        self, sources: Sequence[Any], *, seed: Sequence[int], task: str = "", **options: Any
    ) -> list[Reply | OsumError]:
        """One after the other; a source that cannot be answered gives its error."""
        self.batches.append(len(sources))
        found: list[Reply | OsumError] = []
        for source, own in zip(sources, seed, strict=True):
            try:
                found.append(self.reply(source, task=task or source.task, seed=own, **options))
            except OsumError as error:
                found.append(error)
        return found

    def stream(self, source: Any, **options: Any) -> Iterator[Any]:
        reply = self.reply(source, **options)
        yield TextPiece(reply.text)
        yield AudioPiece(reply.wave, RATE_HZ)
        yield Done(reply)


def name_of(source: Any) -> str:
    if isinstance(source, Utterance):
        source = source.user.audio
    return source.stem if isinstance(source, Path) else str(source)[:20]


def model(assistant: Spoken) -> Model:
    return Model("no model", lambda: assistant)


def write_queries(folder: Path, names: tuple[str, ...] = ("q0", "q1", "q2", "q3")) -> Path:
    """EChat-eval style: a jsonl and its wavs."""
    rows = []
    for number, name in enumerate(names):
        write_wav(folder / f"{name}.wav", 120 + 20 * number)
        category = ("emotion", "age", "event", "multi")[number % 4]
        rows.append({"key": name, "wav": f"{name}.wav", "transcript": f"I lost kite {number}",
                     "category": category, "labels": {"emotion": "SAD", "age": "CHILD",
                                                      "event": "COUGH"}})  # fmt: skip
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(command: str, data: Path, out: Path, *more: str) -> Any:
    """Parsed options of a suite."""
    return door.parser().parse_args([command, "--data", str(data), "--out", str(out), *more])


def scored(suite: str, data: Path, out: Path, assistant: Spoken, *more: str) -> dict[str, Any]:
    """Run a suite. Returns its scores.json."""
    door.run_suite(suite, arguments(suite, data, out, *more), model(assistant))
    found: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return found
