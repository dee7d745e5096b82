"""The two limits on repeated speech codes that upstream has, and leaves off unless it is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from osum_echat.generation.sampling import forbid

SILENCE = 1446                  # the code of silence in the published codec: it may repeat longer


@dataclass(frozen=True, slots=True)
class NoLongRuns:
    """An id that has just come `limit` times in a row may not come again."""

    limit: int = 5
    own_limits: Mapping[int, int] = field(default_factory=lambda: {SILENCE: 10})
    in_speech: ClassVar[bool] = True

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        if not history or history[-1] >= len(logits):
            return logits
        last = history[-1]
        limit = self.own_limits.get(last, self.limit)
        tail = history[-limit:]
        if len(tail) < limit or len(set(tail)) > 1:
            return logits
        return forbid([last], logits)


@dataclass(frozen=True, slots=True)
class WindowLimit:
    """An id that fills `limit` places of the last `window` may not come again."""

    window: int = 8
    limit: int = 5
    own_windows: Mapping[int, tuple[int, int]] = field(default_factory=lambda: {SILENCE: (13, 10)})
    in_speech: ClassVar[bool] = True

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        if not history or history[-1] >= len(logits):
            return logits
        recent = history[-self.window :]
        counted = dict.fromkeys(recent, (recent, self.limit))
        for number, (window, limit) in self.own_windows.items():
            counted[number] = history[-window:], limit
        full = [number for number, (ids, limit) in counted.items()
                if number < len(logits) and ids.count(number) >= limit]  # fmt: skip
        return forbid(full, logits)
