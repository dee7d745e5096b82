"""The assistant: an utterance goes in; its words, a thought, a reply and its speech come out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from osum_echat import device as devices
from osum_echat.errors import OsumError
from osum_echat.inference import load, together
from osum_echat.inference.answering import Speaker, Watch
from osum_echat.inference.load import Parts
from osum_echat.inference.reply import LABEL_FIELDS, Done, Event, Heard, Reply, Timings
from osum_echat.inference.request import Options, Request, Source, lay_out, settle
from osum_echat.paths import TINY

__all__ = ["LABEL_FIELDS", "TINY", "EChat", "Reply", "Timings"]


class EChat:
    """A loaded model with its voice. It keeps no conversation: an utterance brings its history.

    Calls from several threads at once share nothing but the weights.
    """

    def __init__(self, parts: Parts, seed: int) -> None:
        self.parts = parts
        self.directory, self.network, self.vocab = parts.directory, parts.network, parts.vocab
        self.manner, self.voice, self.prompts = parts.manner, parts.voice, parts.prompts
        self.seed = seed
        self.load_s = 0.0

    @classmethod
    def load(
        cls, source: str | Path = TINY, device: str = "auto", seed: int = 0, speaks: bool = True,
        *, config: str | Path | None = None, tokenizer: str | Path | None = None,
        token2wav: str | Path | None = None, voice: str | Path | None = None, dtype: str = "auto",
        keep_lora: bool = False, share: "EChat | None" = None,
    ) -> "EChat":  # fmt: skip
        """Load a model.

        source: our directory, a published .pt, a DeepSpeed directory or hub:OWNER/NAME[/FILE];
        speaks: False leaves the voice out, for tasks that answer in text; config, tokenizer,
        token2wav: where settings, tokenizer and the model of the voice lie, None: beside the
        weights; voice: a recording or saved voice to speak in, None: the model's own; dtype: auto,
        bf16, fp32, or int8 on a CPU; keep_lora: do not merge LoRA layers; share: a loaded assistant
        whose token2wav and equal weights this one uses too. Raises CheckpointError naming what does
        not fit.
        """
        start = time.perf_counter()
        asked = load.Wanted(source, config, tokenizer, token2wav, voice, dtype, keep_lora)
        other = None if share is None else load.Lent(share.network, share.voice)
        assistant = cls(load.load(asked, devices.pick(device), speaks, other), seed)
        assistant.load_s = time.perf_counter() - start
        return assistant

    def reply(
        self, source: Source, *, task: str | None = None, labels: Sequence[str] = (),
        prompt: str | None = None, thinking: str | None = None, greedy: bool = False,
        seed: int | None = None, hear: bool = False, speak: bool = True,
    ) -> Reply:  # fmt: skip
        """Answer one utterance.

        source: a whole Utterance (its task and history are used), a sound file as path or bytes, or
        the text of a task that reads text; labels: what `understand` is asked for (emotion, age,
        gender, event); hear: ask a second time for the words where the task does not tell them;
        speak: False stops after the text. The speech is made at once from all its tokens. Raises
        InputError for what does not fit together.
        """
        options = Options(task, labels, prompt, thinking, greedy, speak)
        return _last(self._events(source, options, seed, hear, None, whole=True))

    def stream(
        self, source: Source, *, task: str | None = None, labels: Sequence[str] = (),
        prompt: str | None = None, thinking: str | None = None, greedy: bool = False,
        seed: int | None = None, hear: bool = False, speak: bool = True,
        interrupt: Callable[[], bool] | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        """Answer one utterance, telling each thing as soon as it is known; Done comes last.

        The arguments are those of `reply`, the words and tokens too. interrupt: asked at every
        step; once it says True, Done follows with what there is so far. Closing the iterator stops
        at once. Raises InputError at the first step.
        """
        options = Options(task, labels, prompt, thinking, greedy, speak)
        return self._events(source, options, seed, hear, interrupt, whole=False)

    def reply_many(
        self, sources: Sequence[Source], *, task: str | None = None, labels: Sequence[str] = (),
        prompt: str | None = None, thinking: str | None = None, greedy: bool = False,
        seed: int | Sequence[int] | None = None, speak: bool = True, batch_size: int = 8,
    ) -> list[Reply | OsumError]:  # fmt: skip
        """Answer many utterances, batch_size at a time, each as `reply` would with that seed.

        seed: of all, or one for each source. Gives one result for each source, in their order; a
        source that cannot be answered gives its error. Times count from this call on, those of a
        batch are shared by its replies. Raises InputError for seeds that are not as many.
        """
        options = Options(task, labels, prompt, thinking, greedy, speak)
        seed = self.seed if seed is None else seed
        seeds = [seed] * len(sources) if isinstance(seed, int) else seed
        return together.reply_many(self.parts, sources, options, seeds, batch_size, self.load_s)

    def _events(
        self, source: Source, options: Options, seed: int | None, hear: bool,
        interrupt: Callable[[], bool] | None, whole: bool,
    ) -> Iterator[Event]:  # fmt: skip
        """whole: the speech comes in one piece."""
        watch, seed = Watch(self.load_s), self.seed if seed is None else seed
        request = settle(self.parts, source, options)
        asked = lay_out(self.parts, request, seed)
        for event in Speaker(self.parts, asked, seed, watch, whole).events(interrupt):
            if isinstance(event, Done) and hear and _may_hear_again(request, event.reply):
                heard = self._hear_again(request, seed, interrupt)
                if heard:
                    yield Heard(heard)
                timings = watch.timings(request.task.hears)
                event = Done(replace(event.reply, heard=heard, timings=timings))
            yield event

    def _hear_again(
        self, request: Request, seed: int, interrupt: Callable[[], bool] | None
    ) -> str | None:
        """The user's words, asked for by themselves."""
        again = replace(request.utterance, task="asr", history=())
        options = Options(greedy=request.greedy)
        return _last(self._events(again, options, seed, False, interrupt, whole=True)).heard


def _may_hear_again(request: Request, reply: Reply) -> bool:
    return request.task.hears and reply.heard is None and reply.stopped_by != "interrupt"


def _last(events: Iterator[Event]) -> Reply:
    """The reply that events add up to."""
    *_, done = events
    assert isinstance(done, Done), "a reply without an end"
    return done.reply
