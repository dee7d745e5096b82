"""A request answered: events come as the model makes them, and the reply is what they add up to."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from osum_echat import logs
from osum_echat.generation import decoder
from osum_echat.generation.decoder import Token
from osum_echat.inference.listening import read_along
from osum_echat.inference.load import Parts
from osum_echat.inference.reply import AudioPiece, Done, Event, Reply, Timings
from osum_echat.inference.reply_parser import Detokeniser
from osum_echat.inference.request import Asked

LOG = logs.logger(__name__)


class _Interrupted(Exception):
    """Leaves the voice while it waits for codes that shall not come."""


class Watch:
    """When things first happened, in seconds after the call."""

    def __init__(self, load_s: float) -> None:
        self._load_s, self._start = load_s, time.perf_counter()
        self._firsts: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Note that it happened, the first time."""
        if name not in self._firsts:
            self._firsts[name] = time.perf_counter() - self._start

    def copy(self) -> "Watch":
        """Another that started at the same time and goes on by itself."""
        other = copy.copy(self)
        other._firsts = dict(self._firsts)
        return other

    def timings(self, hears: bool) -> Timings:
        """hears: what was made ready held audio."""
        ready, first = self._firsts.get("ready"), self._firsts.get("token")
        return Timings(
            load_s=self._load_s,
            encode_s=ready if hears else None,
            prefill_s=None if ready is None or first is None else first - ready,
            first_text_s=self._firsts.get("text"),
            first_speech_token_s=self._firsts.get("speech"),
            first_audio_s=self._firsts.get("audio"),
            total_s=time.perf_counter() - self._start,
        )


def reply_to(asked: Asked, wave: Tensor | None, sample_rate_hz: int, watch: Watch) -> Reply:
    """The reply that an answer holds. wave: (samples,)."""
    request, answer, reading = asked.request, asked.answer, asked.reading
    assert answer.stopped_by is not None, "no reply before the answer ended"
    task = request.task
    if answer.stopped_by == "limit":
        LOG.warning("task %s: no end within %s", task.name, answer.limits)
    if wave is None and request.speaks and answer.stopped_by != "interrupt":
        LOG.warning("task %s: the model gave no speech", task.name)
    return Reply(
        task=task.tag, heard=reading.heard, thought=reading.thought, labels=reading.labels,
        text=reading.text, speech_tokens=tuple(answer.speech.ids) if request.speaks else (),
        wave=wave, sample_rate_hz=None if wave is None else sample_rate_hz,
        audio_in_s=asked.audio_in_s, timings=watch.timings(task.hears),
        stopped_by=answer.stopped_by,
    )  # fmt: skip


class Speaker:
    """One answer on its way out: words at once, speech as the voice makes it."""

    def __init__(self, parts: Parts, asked: Asked, seed: int, watch: Watch, whole: bool) -> None:
        """whole: the voice speaks once, when all codes are there."""
        self.parts, self.asked, self.answer = parts, asked, asked.answer
        self.seed, self.watch, self.whole = seed, watch, whole
        self.characters = Detokeniser(parts.vocab)
        self.pieces: list[Tensor] = []

    def events(self, interrupt: Callable[[], bool] | None) -> Iterator[Event]:
        """All that happens, Done last."""
        network, reading, request = self.parts.network, self.asked.reading, self.asked.request
        (prompt,) = decoder.embed(network, [self.asked.row], self.parts.vocab)
        read_along(self.parts, self.asked, prompt)
        self.watch.mark("ready")
        opened = self.parts.vocab.encode(request.opening) if request.opening else ()
        yield from reading.push(self.characters.push(opened))
        tokens = decoder.stream_embedded(network, prompt, self.answer, interrupt)
        for token in tokens:
            if token.is_speech:
                yield from self._spoken(chain([token], tokens), interrupt)
                break
            yield from self._written(token)
        yield from reading.push(self.characters.rest())
        yield from reading.finish()
        voice = self.parts.voice
        wave = torch.cat(self.pieces) if self.pieces else None
        yield Done(reply_to(self.asked, wave, voice.sample_rate_hz if voice else 0, self.watch))

    def _written(self, token: Token) -> list[Event]:
        self.watch.mark("token")
        self.watch.mark("text")
        if token.id == self.answer.text.end:
            return []
        return self.asked.reading.push(self.characters.push([token.id]))

    def _spoken(
        self, tokens: Iterator[Token], interrupt: Callable[[], bool] | None
    ) -> Iterator[Event]:
        """Speech from its first token on; words that come in between go before the next sound."""
        between: list[Event] = []
        for samples in self._sound(self._codes(tokens, between)):
            if interrupt is not None and interrupt():
                self.answer.stopped_by = "interrupt"
                break
            self.watch.mark("audio")
            self.pieces.append(samples)
            yield from between
            between.clear()
            assert self.parts.voice is not None
            yield AudioPiece(samples, self.parts.voice.sample_rate_hz)
        yield from between

    def _codes(self, tokens: Iterator[Token], between: list[Event]) -> Iterator[int]:
        """The codes among the tokens; what the words in between say is put aside."""
        for token in tokens:
            if not token.is_speech:
                between += self._written(token)
                continue
            self.watch.mark("token")
            self.watch.mark("speech")
            if token.id != self.answer.speech.end:
                yield token.id
        if self.answer.stopped_by == "interrupt":
            raise _Interrupted

    def _sound(self, codes: Iterator[int]) -> Iterator[Tensor]:
        """(samples,) float32 pieces on the CPU."""
        voice = self.parts.voice
        try:
            first = next(codes, None)
            if first is None:
                return
            codes = chain([first], codes)
            if voice is None or not self.asked.request.speaks or self.whole:
                whole = list(codes)
                if voice is not None and self.asked.request.speaks:
                    yield speak(self.parts, whole, self.seed)
            else:
                yield from voice.stream(codes, seed=self.seed)
        except _Interrupted:
            return


def speak(parts: Parts, codes: Sequence[int], seed: int) -> Tensor:
    """The codes as sound, made at once: (samples,) float32 on the CPU."""
    assert parts.voice is not None, "a task that speaks has a voice"
    return parts.voice(list(codes), seed=seed).float().cpu()
