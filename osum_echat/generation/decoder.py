"""The decoding loop: prompt in one pass, then an id a step, each from the head of its phase.

Everything that changes during a run lives in values made for that run.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from osum_echat.generation.rules import Rule
from osum_echat.generation.sampling import Sampling
from osum_echat.models.echat import EChat
from osum_echat.sequence import SPEECH_CHUNK, TEXT_CHUNK, collate
from osum_echat.sequence import Sequence as Row
from osum_echat.tasks import Task
from osum_echat.vocab import Vocab

StoppedBy = Literal["end", "limit", "interrupt"]


class Token(NamedTuple):
    """One generated id, in the space of its phase (text ids or speech ids, marks included)."""

    id: int
    is_speech: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run that finds no end is stopped."""

    text_tokens: int = 2000
    total_tokens: int = 2000


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds; the firsts are counted from the start of the run. None: it did not happen."""

    encode_s: float
    prefill_s: float | None
    first_text_s: float | None
    first_speech_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Generated:
    """What a run gave: text without its end mark, codes without edges."""

    text_ids: list[int]
    speech_ids: list[int]
    stopped_by: StoppedBy
    timings: Timings


class Phases:
    """Which head speaks next, and whether the answer is whole."""

    def __init__(self, task: Task, vocab: Vocab) -> None:
        self.text_end, self.speech_edge = vocab.text_end, vocab.speech_edge
        self.speaks, self.interleaved = task.speaks, task.interleaved
        self.in_speech = not task.answers_text  # such a prompt ends in the first edge
        self.edges_left = 2 - self.in_speech
        self.text_done = self.in_speech
        self.in_chunk = 0  # ids of this phase in the chunk so far

    def advance(self, number: int) -> bool:
        """Take an id of the present phase into account. True when it was the last of the answer."""
        self.in_chunk += 1
        if self.in_speech:
            self.edges_left -= number == self.speech_edge
            if not self.edges_left:
                return True
            if self.interleaved and not self.text_done and self.in_chunk == SPEECH_CHUNK:
                self._turn(to_speech=False)
            return False
        if number == self.text_end:
            self.text_done = True
            self._turn(to_speech=self.speaks)
            return not self.speaks
        if self.interleaved and self.in_chunk == TEXT_CHUNK:
            self._turn(to_speech=True)
        return False

    def _turn(self, to_speech: bool) -> None:
        self.in_speech, self.in_chunk = to_speech, 0


class Cursor:
    """The LLM at the end of a growing row: its cache, and the last hidden state."""

    def __init__(self, model: EChat, embedded: Tensor) -> None:
        self.model, self.llm = model, model.llm.model
        self.cache = model.new_cache()
        self.text_table = model.llm.get_input_embeddings().weight
        self.speech_table = model.speech_embedding.weight
        self._feed(embedded)

    def _feed(self, embedded: Tensor) -> None:
        self.state = self.llm(
            inputs_embeds=embedded, past_key_values=self.cache, use_cache=True
        ).last_hidden_state[0, -1]

    def feed(self, token: Token) -> None:
        table = self.speech_table if token.is_speech else self.text_table
        self._feed(table[token.id][None, None])

    def logits(self, in_speech: bool) -> Tensor:
        """The logits of one head, (vocab,), float32."""
        head = self.model.logits_speech if in_speech else self.model.logits_text
        return head(self.state).float()


def embed(model: EChat, sequence: Row, vocab: Vocab) -> Tensor:
    """The prompt as the LLM reads it: (1, tokens, width)."""
    with torch.inference_mode():
        return model.embed(collate([[sequence]], vocab).to(model.device))


def stream(
    model: EChat,
    sequence: Row,
    vocab: Vocab,
    task: Task,
    sampling: Sampling,
    rules: Sequence[Rule] = (),
    limits: Limits = Limits(),
    interrupt: Callable[[], bool] | None = None,
    generator: torch.Generator | None = None,
    speech_sampling: Sampling | None = None,
) -> Generator[Token, None, StoppedBy]:
    """Answer a prompt, token by token; the generator returns what stopped it.

    The model must be in eval mode. speech_sampling: for the speech phase, None: the same; interrupt
    is asked before every step; generator: the run's own randomness.
    """
    return stream_embedded(
        model,
        embed(model, sequence, vocab),
        vocab,
        task,
        sampling,
        rules,
        limits,
        interrupt,
        generator,
        speech_sampling,
    )


@torch.inference_mode()
def stream_embedded(
    model: EChat,
    embedded: Tensor,
    vocab: Vocab,
    task: Task,
    sampling: Sampling,
    rules: Sequence[Rule] = (),
    limits: Limits = Limits(),
    interrupt: Callable[[], bool] | None = None,
    generator: torch.Generator | None = None,
    speech_sampling: Sampling | None = None,
) -> Generator[Token, None, StoppedBy]:
    """As `stream`, from a prompt already embedded: (1, tokens, width)."""
    phases = Phases(task, vocab)
    samplings = {False: sampling, True: speech_sampling or sampling}
    fresh = [replace(rule) for rule in rules]
    asked = {phase: [rule for rule in fresh if rule.in_speech == phase] for phase in (False, True)}
    history: dict[bool, list[int]] = {False: [], True: []}
    cursor: Cursor | None = None
    token = Token(vocab.text_end, False)  # read from the second step on
    while True:
        if interrupt is not None and interrupt():
            return "interrupt"
        if cursor is None:
            cursor = Cursor(model, embedded)
        else:
            cursor.feed(token)
        phase = phases.in_speech
        logits = samplings[phase].penalise(history[phase], cursor.logits(phase))
        for rule in asked[phase]:
            logits = rule(history[phase], logits)
        token = Token(samplings[phase].choose(logits, generator), phase)
        history[phase].append(token.id)
        is_last = phases.advance(token.id)
        yield token
        if is_last:
            return "end"
        text_tokens = len(history[False])
        if text_tokens + len(history[True]) >= limits.total_tokens or (
            not phases.in_speech and text_tokens >= limits.text_tokens
        ):
            return "limit"


def decode(
    model: EChat,
    sequence: Row,
    vocab: Vocab,
    task: Task,
    sampling: Sampling,
    rules: Sequence[Rule] = (),
    limits: Limits = Limits(),
    interrupt: Callable[[], bool] | None = None,
    generator: torch.Generator | None = None,
    speech_sampling: Sampling | None = None,
) -> Generated:
    """Answer a prompt whole; the arguments are those of `stream`."""
    start = time.perf_counter()
    embedded = embed(model, sequence, vocab)
    encode_s = time.perf_counter() - start
    ids: dict[bool, list[int]] = {False: [], True: []}
    firsts: dict[bool, float] = {}
    tokens = stream_embedded(
        model, embedded, vocab, task, sampling, rules, limits, interrupt, generator, speech_sampling
    )
    while True:
        try:
            token = next(tokens)
        except StopIteration as stop:
            stopped_by: StoppedBy = stop.value
            break
        firsts.setdefault(token.is_speech, time.perf_counter() - start)
        ids[token.is_speech].append(token.id)
    return Generated(
        text_ids=[number for number in ids[False] if number != vocab.text_end],
        speech_ids=[number for number in ids[True] if number != vocab.speech_edge],
        stopped_by=stopped_by,
        timings=Timings(
            encode_s=encode_s,
            prefill_s=min(firsts.values()) - encode_s if firsts else None,
            first_text_s=firsts.get(False),
            first_speech_s=firsts.get(True),
            total_s=time.perf_counter() - start,
        ),
    )
