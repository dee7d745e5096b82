"""One decoding loop for many callers: answers join and leave a running batch (continuous batching).

A prompt goes through the model in pieces between the steps of the others, so that the beginning of
one answer holds the others up by a piece only.
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

LOG = logger(__name__)


@dataclass(eq=False, slots=True)
class _Job:
    """One caller's answer. tokens: what it is told; None ends it, an error too."""

    prompt: Tensor
    answer: Answer
    interrupt: Callable[[], bool] | None
    tokens: "SimpleQueue[Token | BaseException | None]" = field(default_factory=SimpleQueue)
    left: bool = False          # the caller waits no longer
    last: Token | None = None

    @property
    def is_interrupted(self) -> bool:
        return self.left or (self.interrupt is not None and self.interrupt())


class BatchEngine:
    """The loop, in a thread of its own; callers in other threads take tokens from `decode`."""

    def __init__(self, model: EChatModel, most_rows: int = MOST_ROWS) -> None:
        """model: in eval mode, and used by no other loop meanwhile."""
        self.model, self.most_rows = model, most_rows
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._live: list[_Job] = []
        self._rows = CachedLLM(model.llm, ())
        self._prefill: Prefill | None = None
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
                yield token
        finally:
            job.left = True

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
                while not (self._waiting or self._live or self._is_closed):
                    self._changed.wait()
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

    def _admit(self) -> None:
        """Take the next prompt on by one piece; it joins when it is through."""
        if not self._waiting or len(self._live) >= self.most_rows:
            return
        job = self._waiting[0]
        if job.is_interrupted:
            self._forget_first()
            self._interrupt(job)
            return
        try:
            if self._prefill is None:
                self._prefill = Prefill(self.model.llm, job.prompt)
            if not self._prefill.advance(PIECE_TOKENS):
                return
            self._choose(job, self._prefill.state)
        except Exception as error:
            self._forget_first()
            job.tokens.put(error)
            return
        prefill = self._prefill
        self._forget_first()
        if job.answer.stopped_by is None:
            self._rows.join(prefill)
            self._live.append(job)
        else:
            job.tokens.put(None)

    def _forget_first(self) -> None:
        self._prefill = None
        with self._changed:
            self._waiting.popleft()

    def _choose(self, job: _Job, state: Tensor) -> None:
        """The next token of an answer from its row's state, (width,)."""
        (logits,) = row_logits(self.model, state[None], [job.answer])
        job.last = job.answer.choose(logits)
        job.tokens.put(job.last)

    def _step(self) -> None:
        """One token for every answer in the batch."""
        left = [place for place, job in enumerate(self._live) if job.is_interrupted]
        for place in left:
            self._interrupt(self._live[place])
        self._remove(left)
        if not self._live:
            return
        tokens = [job.last for job in self._live if job.last is not None]
        self._rows.step(embed_tokens(self.model, tokens))
        logits = row_logits(self.model, self._rows.state, [job.answer for job in self._live])
        full, ended = self._rows.full_rows(), []
        for place, (job, own) in enumerate(zip(self._live, logits, strict=True)):
            try:
                job.last = job.answer.choose(own)
            except Exception as error:
                job.tokens.put(error)
                job.answer.stopped_by = "interrupt"
                ended.append(place)
                continue
            job.tokens.put(job.last)
            if job.answer.stopped_by is None and place in full:
                job.answer.stopped_by = "limit"
            if job.answer.stopped_by is not None:
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
        job.answer.stopped_by = job.answer.stopped_by or "interrupt"
        job.tokens.put(None)

    def _fail(self, error: Exception) -> None:
        """All answers in the batch have lost their rows."""
        for job in self._live:
            job.answer.stopped_by = "interrupt"
            job.tokens.put(error)
        self._live = []
        self._rows = CachedLLM(self.model.llm, ())
