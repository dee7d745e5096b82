"""The decoding loop: prompts in one pass, then an id a step and row, each from its phase's head.

Everything that changes during a run lives in values made for that run.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from osum_echat.generation.kv_cache import CachedLLM, Prefill
from osum_echat.generation.sampling import Rule, Sampling
from osum_echat.models.echat import EChatModel
from osum_echat.sequence import SPEECH_CHUNK, TEXT_CHUNK, collate
from osum_echat.sequence import Sequence as Row
from osum_echat.tasks import Task
from osum_echat.vocab import Vocab

StoppedBy = Literal["end", "limit", "interrupt"]
MOST_CLIPS = 64                 # that a memory keeps


class Token(NamedTuple):
    """One generated id, in the space of its phase (text ids or speech ids, marks included)."""

    id: int
    is_speech: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """When an answer that finds no end is stopped."""

    text_tokens: int = 2000
    total_tokens: int = 2000


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


class PhaseSampler:
    """What an answer holds in one phase, and how its next id there is chosen."""

    def __init__(self, sampling: Sampling, rules: Sequence[Rule], end: int) -> None:
        """end: the id that is a mark, no part of the answer. Rules are copied: they may change."""
        self.sampling, self.end = sampling, end
        self.rules = [replace(rule) for rule in rules]
        self.history: list[int] = []
        self._seen: dict[int, None] = {}
        self._seen_ids: Tensor | None = None

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> int:
        """The next id; logits: (vocab,), those of this phase's head."""
        if self.sampling.penalises and self._seen:
            if self._seen_ids is None:
                self._seen_ids = torch.tensor(list(self._seen), device=logits.device)
            logits = self.sampling.penalise(self._seen_ids, logits)
        for rule in self.rules:
            logits = rule(self.history, logits)
        number = self.sampling.choose(logits, generator)
        self.history.append(number)
        if number not in self._seen:
            self._seen[number] = None
            self._seen_ids = None
        return number

    @property
    def ids(self) -> list[int]:
        """What was chosen, without marks."""
        return [number for number in self.history if number != self.end]


class Answer:
    """One row's answer while it grows: its phase, settings, randomness, and what ended it."""

    def __init__(
        self, task: Task, vocab: Vocab, sampling: Sampling, rules: Sequence[Rule] = (),
        limits: Limits = Limits(), generator: torch.Generator | None = None,
        speech_sampling: Sampling | None = None,
    ) -> None:  # fmt: skip
        """speech_sampling: for the speech phase, None: the same; generator: its own randomness."""
        self.limits, self.generator = limits, generator
        self.phases = Phases(task, vocab)
        own = {phase: [rule for rule in rules if rule.in_speech == phase]
               for phase in (False, True)}  # fmt: skip
        self.text = PhaseSampler(sampling, own[False], vocab.text_end)
        self.speech = PhaseSampler(speech_sampling or sampling, own[True], vocab.speech_edge)
        self.stopped_by: StoppedBy | None = None

    def choose(self, logits: Tensor) -> Token:
        """Take the next id; logits: (vocab,) of the present phase's head."""
        in_speech = self.phases.in_speech
        own = self.speech if in_speech else self.text
        token = Token(own.choose(logits, self.generator), in_speech)
        words = len(self.text.history)
        if self.phases.advance(token.id):
            self.stopped_by = "end"
        elif words + len(self.speech.history) >= self.limits.total_tokens or (
            not self.phases.in_speech and words >= self.limits.text_tokens
        ):
            self.stopped_by = "limit"
        return token


@dataclass(frozen=True, slots=True)
class _Clip:
    """One is another where it holds the same."""

    digest: bytes
    hear: Callable[[], Any] = field(compare=False)


class ClipMemory:
    """What one model made of its last clips, by their features. For any number of threads.

    Earlier turns of a conversation are not heard again for each answer.
    """

    def __init__(self, most: int = MOST_CLIPS) -> None:
        self._made = lru_cache(most)(lambda clip: clip.hear())

    def recall(self, clip: Tensor, hear: Callable[[Tensor], Any]) -> Any:
        """What `hear` makes of a clip, (frames, mel), or made of an equal one before."""
        digest = blake2b(clip.contiguous().cpu().numpy().tobytes()).digest()
        return self._made(_Clip(digest, partial(hear, clip)))

    def encode(self, network: EChatModel, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `EChatModel.encode_audio_alone`."""

        def hear(mel: Tensor) -> Tensor:
            length = torch.tensor([len(mel)], device=mel.device)
            return network.encode_audio_alone(mel[None], length)[0][0]

        steps = [
            self.recall(mel[:length], hear)
            for mel, length in zip(mels, lengths.tolist(), strict=True)
        ]
        counts = torch.tensor([len(one) for one in steps], device=lengths.device)
        return pad_sequence(steps, batch_first=True), counts


def embed_prompts(
    model: EChatModel, sequences: Sequence[Row], vocab: Vocab, memory: ClipMemory | None = None
) -> list[Tensor]:
    """Prompts as the LLM reads them: (tokens, width) each, as if each were alone.

    memory: of clips that need not be heard again.
    """
    with torch.inference_mode():
        batch = collate([[sequence] for sequence in sequences], vocab).to(model.device)
        encoded = None
        if batch.mels is not None:
            encode = model.encode_audio_alone if memory is None else partial(memory.encode, model)
            encoded = encode(batch.mels, batch.mel_lengths)
        embedded = model.embed(batch, encoded)
    return [row[: len(sequence)] for row, sequence in zip(embedded, sequences, strict=True)]


class Starts:
    """What the prompts of each task begin with, read once; for any number of threads."""

    def __init__(self, model: EChatModel, vocab: Vocab) -> None:
        self.model, self.vocab = model, vocab
        self._read: dict[str, Prefill] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def of(self, task: Task) -> Prefill:
        """The words before anything that is the prompt's own."""
        with self._lock:
            if task.opening not in self._read:
                ids = torch.tensor(self.vocab.encode(task.opening), device=self.model.device)
                start = Prefill(self.model.llm, [self.model.embed_ids(ids)])
                start.advance(len(ids))
                self._read[task.opening] = start
            return self._read[task.opening]


@torch.inference_mode()
def decode(
    model: EChatModel, prompts: Sequence[Tensor], answers: Sequence[Answer],
    interrupt: Callable[[], bool] | None = None, start: Prefill | None = None,
) -> Iterator[tuple[int, Token]]:  # fmt: skip
    """Answer prompts side by side: gives the number of a row and its next token, row by row.

    prompts: (tokens, width) each, embedded; answers: one each, they get the tokens; start: what a
    prompt that is alone begins with, read before. The model must be in eval mode. An answer that
    ended leaves the batch; interrupt is asked before every step.
    """
    live = list(range(len(answers)))
    llm: CachedLLM | None = None
    tokens: list[Token] = []
    while live:
        if interrupt is not None and interrupt():
            for row in live:
                answers[row].stopped_by = "interrupt"
            return
        if llm is None:
            llm = CachedLLM(model.llm, prompts, start if len(prompts) == 1 else None)
        else:
            llm.step(embed_tokens(model, tokens))
        tokens, places, full = [], [], llm.full_rows()
        growing = [answers[row] for row in live]
        for place, logits in enumerate(row_logits(model, llm.state, growing)):
            answer = growing[place]
            token = answer.choose(logits)
            yield live[place], token
            if answer.stopped_by is None and place in full:
                answer.stopped_by = "limit"
            if answer.stopped_by is None:
                tokens.append(token)
                places.append(place)
        if places and len(places) < len(live):
            llm.keep(places)
        live = [live[place] for place in places]


def row_logits(model: EChatModel, state: Tensor, answers: Sequence[Answer]) -> Sequence[Tensor]:
    """The logits of each row's own head: (vocab,), float32; state: (rows, width)."""
    in_speech = [answer.phases.in_speech for answer in answers]
    if len(set(in_speech)) == 1:
        head = model.logits_speech if in_speech[0] else model.logits_text
        return head(state).float().unbind()
    speaking = [place for place, speech in enumerate(in_speech) if speech]
    writing = [place for place, speech in enumerate(in_speech) if not speech]
    of_place = dict(zip(speaking, model.logits_speech(state[speaking]).float(), strict=True))
    of_place |= dict(zip(writing, model.logits_text(state[writing]).float(), strict=True))
    return [of_place[place] for place in range(len(answers))]


def embed_tokens(model: EChatModel, tokens: Sequence[Token]) -> Tensor:
    """(rows, width): each token from the table of its phase."""
    if len(tokens) == 1:
        table = model.speech_embedding if tokens[0].is_speech else model.llm.get_input_embeddings()
        return table.weight[tokens[0].id][None]
    joint = [token.id + model.text_rows * token.is_speech for token in tokens]
    return model.embed_ids(torch.tensor(joint, device=model.device))
