"""What the adapter's steps say beside what the LLM makes of them: joint CTC and LLM decoding.

A model trained with the CTC loss (models/echat.py) spells the user's words in the steps of the
clip. While the LLM writes those words down, each next id is weighed by both: the CTC prefix score
of Watanabe et al. 2017 ("Hybrid CTC/Attention Architecture for End-to-End Speech Recognition",
section IV-B) beside the LLM's own probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from osum_echat.models.ctc import best_path
from osum_echat.thinking import VALUES
from osum_echat.vocab import Vocab

NEVER = -1e30                          # a logarithm of nothing that stays a number in sums
VOCABULARIES = 4                       # whose words are remembered


@dataclass
class CtcPrefix:
    """How likely the steps begin with the ids so far, and which id they go on with.

    log_probs: (steps, ids + 1), each step's over the ids and, last, the blank.
    """

    log_probs: Tensor
    last: int | None = None
    on_id: Tensor = field(init=False)       # (steps + 1,): the path so far ends in the last id,
    on_blank: Tensor = field(init=False)    # or in a blank, after so many steps

    def __post_init__(self) -> None:
        blanks = self.log_probs[:, -1].cumsum(0)
        self.on_blank = torch.cat((blanks.new_zeros(1), blanks))
        self.on_id = torch.full_like(self.on_blank, NEVER)

    def next(self) -> tuple[Tensor, Tensor]:
        """Log probability that this id follows, (ids,), and that none does, given the ids so far.

        Together they are one.
        """
        either = torch.logaddexp(self.on_blank, self.on_id)
        follows = torch.logsumexp(either[:-1, None] + self.log_probs[:, :-1], dim=0)
        if self.last is not None:                       # a repeated id needs a blank between
            again = torch.logsumexp(self.on_blank[:-1] + self.log_probs[:, self.last], dim=0)
            follows[self.last] = again
        ends = either[-1]
        whole = torch.logaddexp(torch.logsumexp(follows, dim=0), ends)
        return follows - whole, ends - whole

    def advance(self, number: int) -> None:
        """Take an id as read."""
        before = self.on_blank if number == self.last else torch.logaddexp(
            self.on_blank, self.on_id
        )
        emits, blanks = self.log_probs[:, number].tolist(), self.log_probs[:, -1].tolist()
        on_id, on_blank = [NEVER], [NEVER]
        for start, emit, blank in zip(before[:-1].tolist(), emits, blanks, strict=True):
            on_blank.append(log_sum(on_blank[-1], on_id[-1]) + blank)
            on_id.append(log_sum(on_id[-1], start) + emit)
        self.on_id, self.on_blank = (
            torch.tensor(each, dtype=self.log_probs.dtype) for each in (on_id, on_blank)
        )
        self.last = number


def log_sum(one: float, other: float) -> float:
    """The logarithm of the sum of two numbers given by theirs."""
    high, low = (one, other) if one > other else (other, one)
    return high + math.log1p(math.exp(low - high)) if low > -math.inf else high


@dataclass
class CtcPrefixScorer:
    """The user's words and labels, as an answer writes them down, weighed by what the steps say.

    log_probs: (steps, ids + 1) of the user's clip, on the CPU; words: (ids,), which ids belong to
    the words; first: (ids,), for each id the one that the steps spell it by at the very beginning
    (without its space); labels: (ids,), which ids are labels of a voice: each counts as far as its
    surest step does; begins: whether the answer begins with the words (the first other id ends
    them); weight: of these scores beside the LLM's 1. Labels that the steps name before the words
    are skipped.
    """

    log_probs: Tensor
    words: Tensor
    first: Tensor
    labels: Tensor
    begins: bool = True
    weight: float = 0.5
    in_speech: ClassVar[bool] = False
    taken: int = field(init=False, default=0)
    prefix: CtcPrefix | None = field(init=False, default=None)
    voice: Tensor = field(init=False)

    def __post_init__(self) -> None:
        surest = self.log_probs[:, :-1].amax(0)
        self.voice = torch.where(self.labels, surest, torch.zeros_like(surest))
        if self.begins:
            self.prefix = CtcPrefix(self.log_probs)
            for number in best_path(self.log_probs):
                if self.words[number]:
                    break
                self.prefix.advance(number)

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        """history: ids generated so far; logits: (vocab,), returned changed."""
        scores = self.voice.new_zeros(len(logits))
        scores[: len(self.voice)] = self.voice
        prefix = self._caught_up(history)
        if prefix is not None:
            follows, ends = prefix.next()
            if self.taken == 0:
                follows = follows[self.first]
            scores += ends
            scores[: len(follows)] = torch.where(self.words, follows, scores[: len(follows)])
        return logits.log_softmax(-1) + self.weight * scores.to(logits.device, logits.dtype)

    def _caught_up(self, history: Sequence[int]) -> CtcPrefix | None:
        """The prefix after the words of the history; None once they have ended."""
        while self.prefix is not None and self.taken < len(history):
            number = history[self.taken]
            if number >= len(self.words) or not self.words[number]:
                self.prefix = None
                break
            self.prefix.advance(int(self.first[number]) if self.taken == 0 else number)
            self.taken += 1
        return self.prefix


@lru_cache(maxsize=VOCABULARIES)
def spoken_ids(vocab: Vocab) -> tuple[Tensor, Tensor]:
    """Which ids are words or parts of words, (ids,); and for each the id of it without its space.

    The steps spell a clip's first word without one.
    """
    texts = [vocab.decode([number]) for number in range(vocab.text_rows)]
    numbers = {text: number for number, text in reversed(list(enumerate(texts)))}
    words = torch.tensor([text.strip().isalnum() for text in texts])
    first = [numbers.get(text.lstrip() or text, number) for number, text in enumerate(texts)]
    return words, torch.tensor(first)


@lru_cache(maxsize=VOCABULARIES)
def label_ids(vocab: Vocab) -> Tensor:
    """Which ids are a whole label of a voice, such as <CHILD>: (ids,)."""
    found = torch.zeros(vocab.text_rows, dtype=torch.bool)
    for name in set().union(*VALUES.values()):
        ids = vocab.encode(f"<{name}>")
        if len(ids) == 1:
            found[ids[0]] = True
    return found
