"""How the next id is chosen from the logits of one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osum_echat.errors import ConfigError


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
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature {self.temperature}: must be over 0; use greedy for the best id"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k}: must be 0 (keep all) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p}: must be over 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise ConfigError(
                f"repetition_penalty {self.repetition_penalty}: must be over 0; 1 is none"
            )

    def penalise(self, history: Sequence[int], logits: Tensor) -> Tensor:
        """Make ids less likely that were already generated. logits: (vocab,), returned changed."""
        if self.repetition_penalty == 1.0 or not history:
            return logits
        seen = torch.tensor(sorted(set(history)), device=logits.device)
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
        chances = (scores / self.temperature).softmax(0)
        before = chances.cumsum(0) - chances
        chances = chances.masked_fill(before >= self.top_p, 0.0)
        return int(ids[torch.multinomial(chances, 1, generator=generator)])


_UNDERSTAND = Sampling(top_k=5, top_p=0.9, repetition_penalty=1.05)
_CHAT = Sampling(temperature=0.4, top_k=2, repetition_penalty=1.05)
_SPEAK = Sampling(temperature=1.2, top_k=10, top_p=0.9)
_TTS = Sampling(temperature=1.2, top_k=15, top_p=0.8)

# By name of the task; those of the published model.
PRESETS = {
    "understand": _UNDERSTAND,
    "s2t": _CHAT,
    "s2t_fake": _CHAT,
    "s2t_think": _CHAT,
    "t2t": Sampling(greedy=True),
    "s2s": _SPEAK,
    "s2s_think": _SPEAK,
    "s2s_history": _SPEAK,
    "s2s_streaming": _SPEAK,
    "tts": _TTS,
    "tts_streaming": _TTS,
}
