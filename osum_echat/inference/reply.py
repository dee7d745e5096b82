"""What the assistant gives back: a whole reply, or its events one by one while it is made."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osum_echat.records import LIST_KEYS, Labels

if TYPE_CHECKING:
    from torch import Tensor

    from osum_echat.generation.decoder import StoppedBy

# What is told of a voice, in this order; the style is the reply's.
LABEL_FIELDS = ("emotion", *(name for name in LIST_KEYS if name not in ("emotion", "style")))


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds after the call of `reply` (load_s: of the load before); None: it did not happen."""

    load_s: float
    encode_s: float | None
    prefill_s: float | None
    first_text_s: float | None
    first_speech_token_s: float | None
    first_audio_s: float | None
    total_s: float


class Timer:
    """When things first happened, in seconds after the call."""

    def __init__(self, load_s: float, start: float | None = None) -> None:
        """start: of the call, by time.perf_counter; None: now."""
        self._load_s = load_s
        self._start = time.perf_counter() if start is None else start
        self._firsts: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Note that it happened, the first time."""
        if name not in self._firsts:
            self._firsts[name] = time.perf_counter() - self._start

    def timings(self, hears: bool) -> Timings:
        """hears: the prompt held audio."""
        ready, first = self._firsts.get("prompt"), self._firsts.get("token")
        return Timings(
            load_s=self._load_s,
            encode_s=ready if hears else None,
            prefill_s=None if ready is None or first is None else first - ready,
            first_text_s=self._firsts.get("text"),
            first_speech_token_s=self._firsts.get("speech"),
            first_audio_s=self._firsts.get("audio"),
            total_s=time.perf_counter() - self._start,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """All that came of one utterance. wave: (samples,), None for a task that does not speak."""

    task: str
    heard: str | None           # the user's words, where the task's own output holds them
    thought: str | None
    labels: Labels
    text: str
    speech_tokens: tuple[int, ...]
    wave: "Tensor | None" = field(repr=False)
    sample_rate_hz: int | None
    audio_in_s: float | None
    timings: Timings
    stopped_by: "StoppedBy" = "end"       # limit: it found no end; interrupt: it was not to go on

    @property
    def audio_out_s(self) -> float | None:
        if self.wave is None or not self.sample_rate_hz:
            return None
        return len(self.wave) / self.sample_rate_hz


@dataclass(frozen=True, slots=True)
class Heard:
    """The user's words; "" where the clip holds none."""

    text: str


@dataclass(frozen=True, slots=True)
class LabelsFound:
    """What is known of the voice, and the style of the reply."""

    labels: Labels


@dataclass(frozen=True, slots=True)
class ThoughtPiece:
    """The next characters of the thought; all pieces put together are `Reply.thought`."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next characters of the reply; all pieces put together are `Reply.text`."""

    text: str


@dataclass(frozen=True, slots=True)
class AudioPiece:
    """The next samples, (samples,) float32 on the CPU; all put together are `Reply.wave`."""

    samples: "Tensor" = field(repr=False)
    sample_rate_hz: int


@dataclass(frozen=True, slots=True)
class Done:
    """The last event: the whole reply, or what there is of it after an interrupt."""

    reply: Reply


Event = Heard | LabelsFound | ThoughtPiece | TextPiece | AudioPiece | Done
