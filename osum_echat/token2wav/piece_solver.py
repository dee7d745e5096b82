"""One solver for the pieces of many streams: the most urgent goes first, and those like it beside.

Side by side they share what a pass costs whatever its size; no row of equal length is padded, so
each comes out as it does alone. Between two steps of the flow's solver a piece lets more urgent
ones pass: a long one that has time holds nobody up.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from osum_echat.token2wav.flow import Flow, VoiceState

MOST_TOGETHER = 8


@dataclass(eq=False, slots=True)
class _Job:
    """A piece. tokens: (tokens,); first: its first one's number; noise: (mel, frames)."""

    tokens: Tensor
    voice: VoiceState
    first: int | None
    noise: Tensor
    due: float
    mel: "Future[Tensor]" = field(default_factory=Future)

    @property
    def kind(self) -> tuple[int, int, int, bool]:
        """What those that go side by side have in common."""
        return len(self.tokens), self.noise.shape[1], id(self.voice), self.first is None


class PieceSolver:
    """Solves pieces in a thread of its own, for callers in other threads."""

    def __init__(
        self, flow: Flow, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """autocast: what the flow computes in."""
        self.flow, self.autocast = flow, autocast
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="pieces", daemon=True).start()

    def mel(
        self, tokens: Tensor, voice: VoiceState, first: int | None, noise: Tensor, due: float
    ) -> Tensor:
        """As `Flow.mels` of one row, (1, mel, frames); due: the monotonic second it is needed at.
        """
        job = _Job(tokens, voice, first, noise, due)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.mel.result()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            self._let_pass(math.inf)

    def _let_pass(self, due: float) -> None:
        """Solve all that is due before that monotonic second."""
        while jobs := self._taken(due):
            try:
                for job, mel in zip(jobs, self._solved(jobs), strict=True):
                    job.mel.set_result(mel)
            except Exception as error:
                for job in jobs:
                    job.mel.set_exception(error)

    def _taken(self, before: float) -> list[_Job]:
        """The most urgent of those due before that second, and its like, which wait no longer."""
        with self._changed:
            self._waiting.sort(key=lambda job: job.due)
            if not self._waiting or self._waiting[0].due >= before:
                return []
            kind = self._waiting[0].kind
            jobs = [one for one in self._waiting if one.kind == kind][:MOST_TOGETHER]
            self._waiting = [one for one in self._waiting if one not in jobs]
            return jobs

    def _solved(self, jobs: list[_Job]) -> list[Tensor]:
        with self.autocast():
            return self.flow.mels(
                [job.tokens for job in jobs], jobs[0].voice, [job.noise for job in jobs],
                [job.first for job in jobs], partial(self._let_pass, jobs[0].due),
            )  # fmt: skip
