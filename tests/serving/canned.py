"""An assistant of canned events, for what is about the conversation and not about the model."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
import torch

from osum_echat.inference import reply
from osum_echat.records import Labels, Utterance
from osum_echat.serving.live_metrics import LiveMetrics
from osum_echat.serving.realtime import Service
from osum_echat.tasks import task_for

RATE_HZ = 22_050
HEARD, THOUGHT = "my boss let me go", "The user said: my boss let me go"
LABELS = Labels("ADULT", "MALE", "SAD", "OTHER", "SOFT")
WORDS = ("Please ", "do not cry", ", my friend.")
TIMINGS = reply.Timings(1.0, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass
class Canned:
    """Answers every question alike, in small pieces; remembers what it was asked."""

    thinking: str = "both"
    heard: str = HEARD
    labels: Labels = LABELS
    is_recognized: bool = False         # the labels are known with the words, before the thought
    words: tuple[str, ...] = WORDS
    times: int = 1                      # that the sound of 0.4 s is given
    error: Exception | None = None      # raised after the first words
    waits: threading.Event | None = None        # for it, before anything is given
    asked: list[tuple[Utterance, dict[str, Any]]] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)   # turns of the histories that were told
    closed: threading.Event = field(default_factory=threading.Event)

    def expect(self, history: Any, task: str) -> None:
        self.expected.append(len(history))

    def stream(
        self, source: Utterance, *, interrupt: Callable[[], bool] | None = None, **options: Any
    ) -> Iterator[reply.Event]:
        self.asked.append((source, options))
        if self.waits is not None:
            self.waits.wait(10)
        try:
            yield from self._events(task_for(source.task), interrupt or (lambda: False))
        finally:
            self.closed.set()

    def _events(self, task: Any, stopped: Callable[[], bool]) -> Iterator[reply.Event]:
        thinks = task.thinks
        if thinks:
            if self.is_recognized:
                yield reply.LabelsFound(self.labels)
            yield reply.Heard(self.heard)
            yield reply.ThoughtPiece(THOUGHT)
            yield reply.LabelsFound(self.labels)
        said, sound = "", []
        for word in self.words:
            if stopped():
                break
            said += word
            yield reply.TextPiece(word)
            if self.error is not None:
                raise self.error
        if task.speaks and not stopped():
            for level in (0.5, -0.25) * self.times:
                sound.append(torch.full((4410,), level))
                yield reply.AudioPiece(sound[-1], RATE_HZ)
        yield reply.Done(reply.Reply(
            task=task.tag, heard=self.heard if thinks or task.transcript else None,
            thought=THOUGHT if thinks else None, labels=self.labels if thinks else Labels(),
            text=said, speech_tokens=(1, 2, 3) if sound else (),
            wave=torch.cat(sound) if sound else None, sample_rate_hz=RATE_HZ if sound else None,
            audio_in_s=1.0, timings=TIMINGS, prompt_tokens=7, text_tokens=5,
            stopped_by="interrupt" if stopped() else "end",
        ))  # fmt: skip


class Loud:
    """Voice activity of a loud window; no model."""

    async def probabilities(self, state: Any, windows: list[Any]) -> list[float]:
        return [float(np.abs(window).mean() > 0.05) for window in windows]


def service(
    assistant: Any = None, turn_model: Any = None, activity: Any = None, **more: Any
) -> Service:
    return Service(assistant or Canned(), "tiny", activity or Loud(), turn_model,
                   ThreadPoolExecutor(4), LiveMetrics(), **more)  # fmt: skip


def wav(seconds: float = 1.0, rate_hz: int = 16_000) -> bytes:
    """A sound file of noise."""
    noise = np.random.default_rng(3).normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, rate_hz, "PCM_16", format="WAV")
    return file.getvalue()
