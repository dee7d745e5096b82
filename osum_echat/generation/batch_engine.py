"""One decoding loop for many callers: answers join and leave a running batch (continuous batching).

A prompt goes through the model in pieces between the steps of the others, so that the beginning of
one answer holds the others up by a piece only. What a prompt will begin with may be read ahead of
it. An answer whose caller is busy is not made far ahead: others, and the voice, need the processor.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    """One row of a call. told: what the call is told of its rows; None ends one, an error too.

    answer: None for the start of a prompt that is only read.
    """

    prompt: Tensor
    answer: Answer | None = None
    place: int = 0
    interrupt: Callable[[], bool] | None = None
    told: "SimpleQueue[tuple[int, Token | Exception | None]]" = field(default_factory=SimpleQueue)
    left: bool = False          # the caller waits no longer
    last: Token | None = None
    prefill: Prefill | None = None

    @property
    def is_interrupted(self) -> bool:
        return self.left or (self.interrupt is not None and self.interrupt())

    @property
    def is_ahead(self) -> bool:
        """Its caller has enough to do."""
        return self.told.qsize() >= MOST_AHEAD


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
        self, prompts: Sequence[Tensor], answers: Sequence[Answer],
        interrupt: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, Token]]:  # fmt: skip
        """As `decoder.decode`: the number of a row and its next token, while the answers grow.

        prompts: (tokens, width) each, embedded. Closing the iterator ends the answers. Raises what
        the model or a rule raised.
        """
        told: SimpleQueue[tuple[int, Token | Exception | None]] = SimpleQueue()
        jobs = [_Job(prompt, answer, place, interrupt, told)
                for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            self._waiting.extend(jobs)
            self._changed.notify()
        left = len(jobs)
        try:
            while left:
                place, token = told.get()
                if isinstance(token, Exception):
                    raise token
                if told.qsize() == MOST_AHEAD - 1:
                    with self._changed:
                        self._changed.notify()
                if token is None:
                    left -= 1
                else:
                    yield place, token
        finally:
            for job in jobs:
                job.left = True

    def read_ahead(self, start: Tensor) -> None:
        """Read what prompts will begin with, (tokens, width), when there is time. It is kept."""
        with self._changed:
            self._waiting.append(_Job(start))
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
            self._end(job)

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
            self._end(job)
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
            self._end(job, error)

    def _begin(self, job: _Job, prefill: Prefill) -> None:
        """A prompt is through: choose the first token and let the row join."""
        if job.answer is None:
            self._keep(prefill)
            return
        (logits,) = row_logits(self.model, prefill.state, [job.answer])
        job.last = job.answer.choose(logits)
        job.told.put((job.place, job.last))
        job.prefill = None
        if job.answer.stopped_by is None:
            self._rows.join(prefill)
            self._live.append(job)
        else:
            self._end(job)

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
            self._end(self._live[place])
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
                self._end(job, error)
                ended.append(place)
                continue
            job.told.put((job.place, job.last))
            if answer.stopped_by is None and place in full:
                answer.stopped_by = "limit"
            if answer.stopped_by is not None:
                self._end(job)
                ended.append(place)
        self._remove(ended)

    def _remove(self, places: list[int]) -> None:
        if places:
            kept = [place for place in range(len(self._live)) if place not in places]
            self._live = [self._live[place] for place in kept]
            self._rows.keep(kept)

    def _end(self, job: _Job, error: Exception | None = None) -> None:
        """Tell a caller that its answer is over; one that is not whole was interrupted."""
        if job.answer is not None:
            job.answer.stopped_by = job.answer.stopped_by or "interrupt"
        job.told.put((job.place, error))

    def _fail(self, error: Exception) -> None:
        """All answers in the batch have lost their rows."""
        for job in self._live:
            self._end(job, error)
        self._live = []
        self._rows = CachedLLM(self.model.llm)
