"""What may not come next: rules on the logits of one phase, given what was generated in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.errors import ConfigError


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
        allowed = torch.tensor(list(self.allowed), device=logits.device)
        return torch.full_like(logits, -torch.inf).index_copy(0, allowed, logits[allowed])


@dataclass(frozen=True, slots=True)
class OnlyIds:
    """Nothing but these ids may come. allowed: (ids,), True for them."""

    allowed: Tensor
    in_speech: ClassVar[bool] = False

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        allowed = functional.pad(self.allowed, (0, len(logits) - len(self.allowed)))
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)


def forbid(ids: Sequence[int], logits: Tensor) -> Tensor:
    """logits: (vocab,). Returns them with these ids impossible."""
    if not ids:
        return logits
    return logits.index_fill(0, torch.tensor(ids, device=logits.device), -torch.inf)
