"""How the next id is chosen from the logits of one step, and what may not come next.

Rules change the logits of one phase, given what was generated in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.errors import ConfigError

SHORTEST_WAIT = 1e-30  # in place of 0, which a generator may give


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of one phase. top_k 0 and top_p 1 keep every id.

    The order is repetition penalty, rules, temperature, top-k, top-p, draw; greedy takes the best
    id after penalty and rules.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, is_right, need in (
            ("temperature", self.temperature > 0, "over 0; use greedy for the best id"),
            ("top_k", self.top_k >= 0, "0 (keep all) or more"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "over 0; 1 is none"),
        ):
            if not is_right:
                raise ConfigError(f"{name} {getattr(self, name)}: must be {need}")

    @property
    def penalises(self) -> bool:
        """Whether ids that came before are made less likely."""
        return self.repetition_penalty != 1.0

    def penalise(self, seen: Tensor, logits: Tensor) -> Tensor:
        """Make ids less likely that were already generated.

        seen: (ids,), each once; logits: (vocab,), returned changed.
        """
        scores = logits[seen]
        penalised = torch.where(
            scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty
        )
        return logits.index_copy(0, seen, penalised)

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> int:
        """The next id. logits: (vocab,), after penalty and rules."""
        if self.greedy:
            return int(logits.argmax())
        scores, ids = logits.topk(min(self.top_k or len(logits), len(logits)))
        # One draw as torch.multinomial makes it: each id waits for its turn, the likelier the less.
        waits = torch.empty_like(scores).exponential_(generator=generator)
        if self.top_k:
            return ids.tolist()[self._first_of_few(scores.tolist(), waits.tolist())]
        chances = (scores / self.temperature).softmax(0)
        before = chances.cumsum(0) - chances
        chances = chances.masked_fill_(before >= self.top_p, 0.0)
        return int(ids[int((chances / waits).argmax())])

    def _first_of_few(self, scores: list[float], waits: list[float]) -> int:
        """The place whose turn comes first; scores fall. Tensors so small would be slow."""
        best = scores[0]
        chances = [math.exp((score - best) / self.temperature) for score in scores]
        enough = self.top_p * sum(chances)
        first, most, before = 0, -1.0, 0.0
        for place, (chance, wait) in enumerate(zip(chances, waits, strict=True)):
            if before >= enough:
                break
            before += chance
            turn = chance / max(wait, SHORTEST_WAIT)
            if turn > most:
                first, most = place, turn
        return first


# Those of the published model; tasks name theirs.
PRESETS = {
    "understand": Sampling(top_k=5, top_p=0.9, repetition_penalty=1.05),
    "chat": Sampling(temperature=0.4, top_k=2, repetition_penalty=1.05),
    "greedy": Sampling(greedy=True),
    "speak": Sampling(temperature=1.2, top_k=10, top_p=0.9),
    "tts": Sampling(temperature=1.2, top_k=15, top_p=0.8),
}


class Rule(Protocol):
    """A dataclass: every run works on fresh copies. `in_speech`: the phase in which it is asked."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    in_speech: ClassVar[bool]

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        """history: ids generated in this phase; logits: (vocab,), returned changed."""


@dataclass(frozen=True, slots=True)
class NoLoops:
    """A phrase that has just come `times` times, back to back, may not begin once more.

    A phrase is one to `longest` ids. Small models fall into such loops; published ones are not
    asked, since they were not so decoded.
    """

    times: int = 3
    longest: int = 12
    in_speech: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.times < 2 or self.longest < 1:
            raise ConfigError(
                f"times {self.times}, longest {self.longest}: need 2 or more times, 1 or more ids"
            )

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        next_ids = {
            history[-size]
            for size in range(1, min(self.longest, len(history) // self.times) + 1)
            if self._has_come(history, size)
        }
        return forbid(list(next_ids), logits)

    def _has_come(self, history: Sequence[int], size: int) -> bool:
        """Whether the last `size` ids are the end of `times` equal phrases."""
        if history[-1] != history[-1 - size]:
            return False
        tail = history[-size * self.times :]
        return tail[size:] == tail[:-size]


@dataclass(slots=True)
class AllowedAfter:
    """The first time that the text ends in `cue`, only `allowed` may follow.

    Made for label thinking: an unknown age was trained as `<&&>`, and this asks for a real one.
    """

    cue: Sequence[int]
    allowed: Sequence[int]
    fired: bool = field(default=False, init=False)
    in_speech: ClassVar[bool] = False

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        if self.fired or not self.cue or list(history[-len(self.cue) :]) != list(self.cue):
            return logits
        self.fired = True
        return only(self.allowed, logits)


@dataclass(frozen=True, slots=True)
class EndsAtCue:
    """Behind the thought, a text that is about to go on with a label cue ends.

    Small models fall back into the label thought: `I am so sorry. You said: hello, age: <OLD>`.
    cue: its ids; thought_end: those that end a thought, () where there is none; end: of the text.
    """

    cue: tuple[int, ...]
    thought_end: tuple[int, ...]
    end: int
    in_speech: ClassVar[bool] = False

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        *begun, last = self.cue
        size = len(self.thought_end)
        if (
            list(history[len(history) - len(begun) :]) != begun
            or int(logits.argmax()) != last
            or not any(tuple(history[place : place + size]) == self.thought_end
                       for place in range(len(history) - size + 1))
        ):  # fmt: skip
            return logits
        return only([self.end], logits)


@dataclass(frozen=True, slots=True)
class OnlyIds:
    """Nothing but these ids may come. allowed: (ids,), True for them."""

    allowed: Tensor
    in_speech: ClassVar[bool] = False

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        allowed = functional.pad(self.allowed, (0, len(logits) - len(self.allowed)))
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)


def only(ids: Sequence[int], logits: Tensor) -> Tensor:
    """logits: (vocab,). Returns them with all other ids impossible."""
    allowed = torch.tensor(list(ids), device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy(0, allowed, logits[allowed])


def forbid(ids: Sequence[int], logits: Tensor) -> Tensor:
    """logits: (vocab,). Returns them with these ids impossible."""
    if not ids:
        return logits
    return logits.index_fill(0, torch.tensor(ids, device=logits.device), -torch.inf)
