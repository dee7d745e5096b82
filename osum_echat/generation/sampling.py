"""How the next id is chosen from the logits of one step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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

    @property
    def penalises(self) -> bool:
        """Whether ids that came before are made less likely."""
        return self.repetition_penalty != 1.0

    def penalise(self, seen: Tensor, logits: Tensor) -> Tensor:
        """Make ids less likely that were already generated.

        seen: (ids,), each once; logits: (vocab,), returned changed.
        """
        if not self.penalises or not len(seen):
            return logits
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
