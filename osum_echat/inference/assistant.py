"""The assistant: an utterance goes in; its words, a thought, a reply and its speech come out.

Every answer takes one path. `make_request` and `prepare` check what is asked and lay out the prompt
(inference/request.py); `_embed` hears it; `_decode` makes the tokens, of one prompt or of several
side by side; the parser says what the text tells; the voice makes sound of the speech tokens.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from osum_echat import device as devices
from osum_echat import logs
from osum_echat.errors import InputError, OsumError
from osum_echat.generation import decoder
from osum_echat.generation.batch_engine import BatchEngine
from osum_echat.generation.ctc_prefix import CtcPrefixScorer, label_ids, spoken_ids
from osum_echat.generation.decoder import ClipMemory, Token
from osum_echat.generation.sampling import OnlyIds
from osum_echat.inference.load import LoadedModel, LoadOptions, load
from osum_echat.inference.reply import (
    AudioPiece,
    Detokenizer,
    Done,
    Event,
    Heard,
    Reply,
    TextPiece,
    Timer,
)
from osum_echat.inference.request import (
    Options,
    RequestState,
    Source,
    dialogue_task,
    make_request,
    nothing_heard,
    opening_row,
    prepare,
)
from osum_echat.inference.talker import CODES_AHEAD, Speech, Talker
from osum_echat.paths import model_source
from osum_echat.records import Turn
from osum_echat.tasks import TASKS
from osum_echat.token2wav.voice import VoicePrompt

Interrupt = Callable[[], bool]
LEAST_SURE = 0.25       # of the words read in a clip, on average; noises are taken for unsure words
LOG = logs.logger(__name__)


class EChat:
    """A loaded model with its voice. It keeps no conversation: an utterance brings its history.
    Calls from several threads at once share nothing but the weights."""

    def __init__(self, model: LoadedModel, seed: int) -> None:
        self.model = model
        self.directory, self.network, self.vocab = model.directory, model.network, model.vocab
        self.voice, self.prompts = model.voice, model.prompts
        self.thinking = model.generation.thinking    # label, natural, both or either
        self.seed = seed
        self.load_s = 0.0

    @classmethod
    def load(
        cls, source: str | Path | None = None, device: str = "auto", seed: int = 0,
        speaks: bool = True, *,
        config: str | Path | None = None, tokenizer: str | Path | None = None,
        token2wav: str | Path | None = None, voice: str | Path | None = None,
        talker: str | Path | None = None, dtype: str = "auto",
        keep_lora: bool = False, recognizer: str | None = None, engine: str = "own",
        share: "EChat | None" = None,
    ) -> "EChat":  # fmt: skip
        """Load a model.

        source: small, tiny (None: the first of them that is whole), our directory, a published .pt,
        a DeepSpeed directory or hub:OWNER/NAME[/FILE]; speaks: False leaves the voice out, for
        tasks that answer in text; config, tokenizer, token2wav: where settings, tokenizer and the
        model of the voice lie, None: beside the weights; voice: a recording or saved voice to speak
        in, None: the model's own; talker: the directory of a model that speaks the words, none: the
        model itself, None: what the model's settings name; dtype: auto, bf16, fp32, or int8 on a
        CPU; keep_lora: do not merge LoRA layers; recognizer: ear, whisper or both, None: as the
        model's settings say; engine: what decodes, own or vllm; share: a loaded assistant whose
        token2wav and equal weights this one uses too. Raises CheckpointError naming what does not
        fit.
        """
        start = time.perf_counter()
        options = LoadOptions(
            model_source(source), config, tokenizer, token2wav, voice, talker, dtype, keep_lora,
            recognizer, engine,
        )  # fmt: skip
        model = load(options, devices.pick(device), speaks, share.model if share else None)
        made = cls(model, seed)
        made.load_s = time.perf_counter() - start
        return made

    def share(self) -> None:
        """Decode for all callers, whatever their threads, in one loop: for servers."""
        engine = self.model.engine or BatchEngine(self.network)
        self.model = replace(self.model, engine=engine, memory=ClipMemory())
        if self.voice is not None:
            self.voice.share()

    def expect(self, history: Sequence[Turn], task: str) -> None:
        """Hear and read earlier turns while the next one is spoken, if a loop is shared."""
        if self.model.engine is not None:
            row = opening_row(self.model, history, dialogue_task(task, bool(history)))
            (start,) = decoder.embed_prompts(self.network, [row], self.vocab, self.model.memory)
            self.model.engine.read_ahead(start)

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
        interrupt: Interrupt | None = None,
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
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: must be 1 or more")
        seed = self.seed if seed is None else seed
        seeds = [seed] * len(sources) if isinstance(seed, int) else seed
        if len(seeds) != len(sources):
            raise InputError(f"{len(seeds)} seeds for {len(sources)} sources; give one for each")
        options = Options(task, labels, prompt, thinking, greedy, speak)
        start = time.perf_counter()
        results: dict[int, Reply | OsumError] = {}
        states: dict[int, RequestState] = {}
        for number, (source, own) in enumerate(zip(sources, seeds, strict=True)):
            try:
                request = make_request(self.model, source, options)
                states[number] = prepare(self.model, request, own, Timer(self.load_s, start))
            except OsumError as error:
                results[number] = error
        # Like beside like: little padding, and rows of a task end at about the same time.
        order = sorted(states, key=lambda one: (states[one].row.task, len(states[one].row)))
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            replies = answer_many(self.model, [states[number] for number in numbers])
            results |= zip(numbers, replies, strict=True)
        return [results[number] for number in range(len(sources))]

    def _events(
        self, source: Source, options: Options, seed: int | None, hear: bool,
        interrupt: Interrupt | None, whole: bool,
    ) -> Iterator[Event]:  # fmt: skip
        """whole: the speech comes in one piece."""
        timer, seed = Timer(self.load_s), self.seed if seed is None else seed
        request = make_request(self.model, source, options)
        state = prepare(self.model, request, seed, timer)
        hear = hear and request.task.hears
        for event in _Stream(self.model, state, interrupt, whole).events():
            reply = event.reply if isinstance(event, Done) else None
            if hear and reply and reply.heard is None and reply.stopped_by != "interrupt":
                again = replace(request.utterance, task="asr", history=())
                asked = self._events(again, Options(greedy=request.greedy), seed, False, interrupt,
                                     whole=True)  # fmt: skip
                heard = _last(asked).heard
                if heard:
                    yield Heard(heard)
                event = Done(replace(reply, heard=heard, timings=timer.timings(hears=True)))
            yield event


def answer_many(model: LoadedModel, states: Sequence[RequestState]) -> list[Reply | OsumError]:
    """Answer requests side by side, in one padded batch: a reply for each, or its error."""
    states, prompts = _embed(model, states)
    for _ in _decode(model, states, prompts):
        pass
    for state in states:
        text = model.vocab.decode((*state.opening, *state.answer.text.ids))
        state.parser.push(text, is_last=True)
        if model.talker is not None and state.request.speaks:
            codes = model.talker.say(state.parser.text, state.parser.labels.style)
            state.answer.speech.history.extend(codes)
    waves = _speak_many(model, states)
    return [
        wave if isinstance(wave, OsumError) else _reply(model, state, wave)
        for state, wave in zip(states, waves, strict=True)
    ]


def _voice_of(model: LoadedModel, state: RequestState) -> VoicePrompt | None:
    """The voice in the reply's style; None: as it is."""
    assert model.voice is not None, "a task that speaks has a voice"
    style, styles = state.parser.labels.style, model.voice.styles
    if style and styles and style not in styles:
        LOG.warning("style %s: the voice has %s; it speaks as usual", style, ", ".join(styles))
    return styles.get(style or "")


def _embed(
    model: LoadedModel, states: Sequence[RequestState]
) -> tuple[list[RequestState], list[Tensor]]:
    """The prompts as the LLM reads them, (tokens, width) each: clips are heard here.

    Where the user's words are written down, the CTC score of the clip weighs on each next id.
    The request of a clip without words gets another state, which says so.
    """
    states = [nothing_heard(model, one) if one.is_silent else one for one in states]
    rows, memory = [state.row for state in states], model.memory
    prompts = decoder.embed_prompts(model.network, rows, model.vocab, memory)
    for number, state in enumerate(states):
        is_read = state.request.task.hears and state.request.recognition is None
        if model.generation.ctc_weight and is_read and not state.is_silent:
            states[number], prompts[number] = _hear(model, state, prompts[number])
    for state in states:
        state.timer.mark("prompt")
    return states, prompts


def _hear(model: LoadedModel, state: RequestState, prompt: Tensor) -> tuple[RequestState, Tensor]:
    """What the CTC head reads in the user's clip: whether there are words, and how likely each is.

    prompt: (tokens, width), embedded: the steps of its last clip are the user's. A clip without
    words may still have labels.
    """
    request, span = state.request, state.row.spans[-1]
    with torch.inference_mode():
        log_probs = model.network.ctc_log_probs(prompt[span.start :][: span.length]).cpu()
    words, first = spoken_ids(model.vocab)
    labels, rules = label_ids(model.vocab), state.answer.text.rules
    sure, read = log_probs.exp().max(-1)
    spoken = torch.cat((words, torch.tensor([False])))[read]
    is_dialogue = not request.task.understands
    if (not spoken.any() and (request.task.transcript or is_dialogue)) or (
        is_dialogue and sure[spoken].mean() < LEAST_SURE
    ):
        if request.task.understands and request.task.labels:
            rules.append(OnlyIds(labels.index_fill(0, torch.tensor(model.vocab.text_end), True)))
        else:
            state = nothing_heard(model, state)
            return state, decoder.embed_prompts(model.network, [state.row], model.vocab)[0]
    if request.task.understands or request.kind == "label":     # words or labels are written down
        rules.append(CtcPrefixScorer(
            log_probs, words, first, labels, weight=model.generation.ctc_weight,
            begins=request.task.transcript or (request.kind == "label" and bool(request.opening)),
        ))  # fmt: skip
    return state, prompt


def _decode(
    model: LoadedModel, states: Sequence[RequestState], prompts: Sequence[Tensor],
    interrupt: Interrupt | None = None,
) -> Iterator[tuple[int, Token]]:  # fmt: skip
    """All tokens of the answers, words and codes: the number of a request and its next token."""
    live = [row for row, state in enumerate(states) if state.answer.stopped_by is None]
    if not live:
        return
    answers, begun = [states[row].answer for row in live], [prompts[row] for row in live]
    task = TASKS[states[live[0]].row.task]
    for place, token in model.decode(task, begun, answers, interrupt):
        state = states[live[place]]
        state.timer.mark("token")
        state.timer.mark("speech" if token.is_speech else "text")
        yield live[place], token


class _Interrupted(Exception):
    """Leaves the voice while it waits for codes that shall not come."""


class _Stream:
    """One answer on its way out: words at once, speech as the voice makes it."""

    def __init__(
        self, model: LoadedModel, state: RequestState, interrupt: Interrupt | None, whole: bool
    ) -> None:
        self.model, self.interrupt, self.whole = model, interrupt, whole
        (self.state,), self.prompts = _embed(model, [state])
        self.answer, self.parser = self.state.answer, self.state.parser
        self.detokenizer = Detokenizer(model.vocab)
        self.pieces: list[Tensor] = []
        self.is_finished = False

    def events(self) -> Iterator[Event]:
        """All that happens, Done last."""
        parts = self._parts()
        if self.model.talker is not None and self.state.request.speaks:
            parts = devices.read_ahead(self._talked(parts, self.model.talker), CODES_AHEAD)
        with closing(parts):
            for part in parts:
                if isinstance(part, int):
                    yield from self._spoken(chain([part], parts))
                    break
                yield part
        yield from self._finish()
        wave = torch.cat(self.pieces) if self.pieces else None
        yield Done(_reply(self.model, self.state, wave))

    def _parts(self) -> Generator[Event | int, None, None]:
        """What the words tell, and the LLM's speech codes, in the order in which they come."""
        yield from self.parser.push(self.detokenizer.push(self.state.opening))
        for _, token in _decode(self.model, [self.state], self.prompts, self.interrupt):
            if not token.is_speech:
                yield from self._written(token)
            elif token.id != self.answer.speech.end:
                yield token.id
        yield from self._finish()

    def _written(self, token: Token) -> list[Event]:
        if token.id == self.answer.text.end:
            return []
        return self.parser.push(self.detokenizer.push([token.id]))

    def _finish(self) -> list[Event]:
        """What the end of the words tells, once."""
        if self.is_finished:
            return []
        self.is_finished = True
        return self.parser.push(self.detokenizer.push((), is_last=True), is_last=True)

    def _talked(
        self, parts: Iterator[Event | int], talker: Talker
    ) -> Generator[Event | int, None, None]:
        """The same, and the codes of each clause as soon as its words are there."""
        speech: Speech | None = None
        for part in parts:
            yield part
            if isinstance(part, TextPiece):
                speech = speech or talker.begin(self.parser.labels.style)
                yield from self._told(speech.push(part.text))
        if speech is not None:
            yield from self._told(speech.push("", is_last=True))

    def _told(self, codes: Iterator[int]) -> Iterator[int]:
        """A talker's codes, noted as the answer's."""
        for code in codes:
            if self.interrupt is not None and self.interrupt():
                self.answer.stopped_by = "interrupt"
                return
            self.state.timer.mark("speech")
            self.answer.speech.history.append(code)
            yield code

    def _spoken(self, parts: Iterator[Event | int]) -> Iterator[Event]:
        """Speech from its first code on; words that come in between go before the next sound."""
        between: list[Event] = []
        for samples in self._sound(self._codes(parts, between)):
            if self.interrupt is not None and self.interrupt():
                self.answer.stopped_by = "interrupt"
                break
            self.state.timer.mark("audio")
            self.pieces.append(samples)
            yield from between
            between.clear()
            assert self.model.voice is not None
            yield AudioPiece(samples, self.model.voice.sample_rate_hz)
        yield from between

    def _codes(self, parts: Iterator[Event | int], between: list[Event]) -> Iterator[int]:
        """The codes among the parts; what the words in between say is put aside."""
        for part in parts:
            if isinstance(part, int):
                yield part
            else:
                between.append(part)
        if self.answer.stopped_by == "interrupt":
            raise _Interrupted

    def _sound(self, codes: Iterator[int]) -> Iterator[Tensor]:
        """(samples,) float32 pieces on the CPU."""
        voice, seed = self.model.voice, self.state.seed
        try:
            first = next(codes, None)
            if first is None:
                return
            codes = chain([first], codes)
            if voice is None or not self.state.request.speaks:
                for _ in codes:     # to its end: words may come in between
                    pass
            elif self.whole:
                spoken = list(codes)
                yield voice(spoken, _voice_of(self.model, self.state), seed).float().cpu()
            else:
                yield from voice.stream(codes, _voice_of(self.model, self.state), seed)
        except _Interrupted:
            return


def _speak_many(
    model: LoadedModel, states: Sequence[RequestState]
) -> list[Tensor | OsumError | None]:
    """The speech of answers that have ended, (samples,) each; None where there is none."""
    waves: list[Tensor | OsumError | None] = [None] * len(states)
    by_style: dict[str | None, list[int]] = {}
    for row, state in enumerate(states):
        if state.request.speaks and state.answer.speech.ids:
            by_style.setdefault(state.parser.labels.style, []).append(row)
    for rows in by_style.values():
        made = _speak_alike(model, [states[row] for row in rows])
        for row, wave in zip(rows, made, strict=True):
            waves[row] = wave
    return waves


def _speak_alike(
    model: LoadedModel, states: Sequence[RequestState]
) -> Sequence[Tensor | OsumError]:
    """The speech of answers in one style; what is wrong with one is told of it alone."""
    assert model.voice is not None, "a task that speaks has a voice"
    codes, voice = [state.answer.speech.ids for state in states], _voice_of(model, states[0])
    try:
        return model.voice.many(codes, voice, [state.seed for state in states])
    except OsumError as error:
        if len(states) == 1:
            return [error]
        return [wave for state in states for wave in _speak_alike(model, [state])]


def _reply(model: LoadedModel, state: RequestState, wave: Tensor | None) -> Reply:
    """The reply that an answer holds. wave: (samples,)."""
    request, answer, parser = state.request, state.answer, state.parser
    assert answer.stopped_by is not None, "no reply before the answer ended"
    task, voice = request.task, model.voice
    if wave is not None:
        state.timer.mark("audio")
    if answer.stopped_by == "limit":
        LOG.warning("task %s: no end within %s", task.name, answer.limits)
    if wave is None and request.speaks and answer.stopped_by != "interrupt":
        LOG.warning("task %s: the model gave no speech", task.name)
    return Reply(
        task=task.tag, heard=state.heard, thought=parser.thought, labels=parser.labels,
        text=parser.text, speech_tokens=tuple(answer.speech.ids) if request.speaks else (),
        wave=wave, sample_rate_hz=None if wave is None or voice is None else voice.sample_rate_hz,
        audio_in_s=state.audio_in_s, timings=state.timer.timings(task.hears),
        prompt_tokens=len(state.row), clip_tokens=sum(one.length for one in state.row.spans),
        text_tokens=len(answer.text.ids),
        stopped_by=answer.stopped_by,
    )  # fmt: skip


def _last(events: Iterator[Event]) -> Reply:
    *_, done = events
    assert isinstance(done, Done), "a reply without an end"
    return done.reply
