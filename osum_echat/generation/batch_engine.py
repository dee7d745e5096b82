"""One decoding loop for many callers: answers join and leave a running batch (continuous batching).

A prompt goes through the model in pieces between the steps of the others, so that the beginning of
one answer holds the others up by a piece only. What a prompt will begin with may be read ahead of
it. An answer whose caller is busy is not made far ahead: others, and the voice, need the processor.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from torch import Tensor

from osum_echat.generation.decoder import Answer, Token, embed_tokens, row_logits
from osum_echat.generation.kv_cache import CachedLLM, Prefill
from osum_echat.logs import logger
from osum_echat.models.echat import EChatModel

MOST_ROWS = 16                  # that grow side by side; more wait
PIECE_TOKENS = 64               # of a prompt, between two steps
MOST_AHEAD = 4                  # tokens that wait for a caller, who solves a piece of speech
STEPS_A_START = 8               # between two pieces of a start, where an answer waits for them
LOOK_S = 0.05                   # between looks for interrupts while no answer grows
MOST_STARTS, MOST_START_BYTES = 8, 96 << 20     # of prompts, read ahead and kept

LOG = logger(__name__)


@dataclass(eq=False, slots=True)
class _Job:
    """One caller's answer. tokens: what it is told; None ends it, an error too.

    answer: None for the start of a prompt that is only read.
    """

    prompt: Tensor
    answer: Answer | None
    interrupt: Callable[[], bool] | None
    tokens: "SimpleQueue[Token | BaseException | None]" = field(default_factory=SimpleQueue)
    left: bool = False          # the caller waits no longer
    last: Token | None = None
    prefill: Prefill | None = None

    @property
    def is_interrupted(self) -> bool:
        return self.left or (self.interrupt is not None and self.interrupt())

    @property
    def is_ahead(self) -> bool:
        """Its caller has enough to do."""
        return self.tokens.qsize() >= MOST_AHEAD


class BatchEngine:
    """The loop, in a thread of its own; callers in other threads take tokens from `decode`."""

    def __init__(self, model: EChatModel, most_rows: int = MOST_ROWS) -> None:
        """model: in eval mode, and used by no other loop meanwhile."""
        self.model, self.most_rows = model, most_rows
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._live: list[_Job] = []
        self._rows = CachedLLM(model.llm)
        self._starts: deque[Prefill] = deque()
        self._steps = 0                 # since the last piece of a start
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def decode(
        self, prompt: Tensor, answer: Answer, interrupt: Callable[[], bool] | None = None
    ) -> Iterator[Token]:
        """The tokens of one answer, which grows. prompt: (tokens, width), embedded.

        interrupt: asked before every step. Closing the iterator ends the answer. Raises what the
        model raised.
        """
        job = _Job(prompt, answer, interrupt)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            self._waiting.append(job)
            self._changed.notify()
        try:
            while (token := job.tokens.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                if job.tokens.qsize() == MOST_AHEAD - 1:
                    with self._changed:
                        self._changed.notify()
                yield token
        finally:
            job.left = True

    def read_ahead(self, start: Tensor) -> None:
        """Read what prompts will begin with, (tokens, width), when there is time. It is kept."""
        with self._changed:
            self._waiting.append(_Job(start, None, None))
            self._changed.notify()

    def close(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._may_admit() or self._may_step() or self._is_closed):
                    self._changed.wait(LOOK_S if self._live else None)
                if self._is_closed:
                    break
            try:
                self._admit()
                self._step()
            except Exception as error:
                LOG.exception("a step of the decoding loop failed")
                self._fail(error)
        for job in (*self._live, *self._waiting):
            self._interrupt(job)

    def _may_admit(self) -> bool:
        return bool(self._waiting) and len(self._live) < self.most_rows

    def _may_step(self) -> bool:
        return any(not job.is_ahead or job.is_interrupted for job in self._live)

    def _admit(self) -> None:
        """Take the next prompt on by one piece; it joins at its end. Starts come after all others,
        and not at every step of those that grow."""
        if not self._may_admit():
            return
        job = next((one for one in self._waiting if one.answer is not None), self._waiting[0])
        if job.answer is None:
            if self._may_step() and self._steps < STEPS_A_START:
                return
            self._steps = 0
        if job.is_interrupted:
            self._forget(job)
            self._interrupt(job)
            return
        try:
            if job.prefill is None:
                job.prefill = Prefill(self.model.llm, [job.prompt], self._start_of(job.prompt))
            if not job.prefill.advance(PIECE_TOKENS):
                return
            self._forget(job)
            self._begin(job, job.prefill)
        except Exception as error:
            self._forget(job)
            job.tokens.put(error)

    def _begin(self, job: _Job, prefill: Prefill) -> None:
        """A prompt is through: choose the first token and let the row join."""
        if job.answer is None:
            self._keep(prefill)
            return
        (logits,) = row_logits(self.model, prefill.state, [job.answer])
        job.last = job.answer.choose(logits)
        job.tokens.put(job.last)
        job.prefill = None
        if job.answer.stopped_by is None:
            self._rows.join(prefill)
            self._live.append(job)
        else:
            job.tokens.put(None)

    def _start_of(self, prompt: Tensor) -> Prefill | None:
        """What was read ahead and has most in common with the prompt."""
        return max(self._starts, key=lambda one: one.common(prompt), default=None)

    def _keep(self, start: Prefill) -> None:
        """Keep what was read ahead, instead of what it goes on from."""
        older = [one for one in self._starts if one.common(start.prompts[0]) < one.tokens]
        self._starts = deque([*older, start], MOST_STARTS)
        while len(self._starts) > 1 and sum(one.bytes for one in self._starts) > MOST_START_BYTES:
            self._starts.popleft()

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _step(self) -> None:
        """One token for every answer in the batch."""
        left = [place for place, job in enumerate(self._live) if job.is_interrupted]
        for place in left:
            self._interrupt(self._live[place])
        self._remove(left)
        if all(job.is_ahead for job in self._live):
            return
        self._steps += 1
        answers = [job.answer for job in self._live if job.answer is not None]
        tokens = [job.last for job in self._live if job.last is not None]
        self._rows.step(embed_tokens(self.model, tokens))
        logits = row_logits(self.model, self._rows.state, answers)
        full, ended = self._rows.full_rows(), []
        for place, (job, answer, own) in enumerate(
            zip(self._live, answers, logits, strict=True)
        ):
            try:
                job.last = answer.choose(own)
            except Exception as error:
                job.tokens.put(error)
                answer.stopped_by = "interrupt"
                ended.append(place)
                continue
            job.tokens.put(job.last)
            if answer.stopped_by is None and place in full:
                answer.stopped_by = "limit"
            if answer.stopped_by is not None:
                job.tokens.put(None)
                ended.append(place)
        self._remove(ended)

    def _remove(self, places: list[int]) -> None:
        if places:
            kept = [place for place in range(len(self._live)) if place not in places]
            self._live = [self._live[place] for place in kept]
            self._rows.keep(kept)

    def _interrupt(self, job: _Job) -> None:
        """End an answer that is not whole, and tell its caller."""
        if job.answer is not None:
            job.answer.stopped_by = job.answer.stopped_by or "interrupt"
        job.tokens.put(None)

    def _fail(self, error: Exception) -> None:
        """All answers in the batch have lost their rows."""
        for job in self._live:
            if job.answer is not None:
                job.answer.stopped_by = "interrupt"
            job.tokens.put(error)
        self._live = []
        self._rows = CachedLLM(self.model.llm)
