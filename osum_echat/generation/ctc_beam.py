"""The likeliest texts of a clip by its CTC, and the one among them that a language model prefers.

The beam is the prefix search of Hannun et al. 2014 ("First-Pass Large Vocabulary Continuous Speech
Recognition using Bi-Directional Recurrent DNNs"); its best texts are weighed by CTC, language model
and their number of words. In the beam, bigrams of words may count as well.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.generation.ctc_prefix import log_sum

NEVER = -math.inf
PER_STEP = 12  # classes that a step may go on with
LEAST = -9.0  # log probability below which a class is not looked at

UNKNOWN, LETTER = -16.0, -1.5   # log probability of a word that is not known, and of its letters
AFTER_LETTERS = "\x7f"          # sorts behind all that words are written with
TENSORS = ("words", "alone", "backoff", "starts", "followers", "pairs")     # of the bigrams' file


@dataclass(frozen=True, slots=True, eq=False)
class Bigrams:
    """How likely a word is, alone and after another, in log probabilities.

    words: sorted; alone: (words,); backoff: (words + 1,), added to `alone` where a pair was not
    kept, the last at the beginning of a text; the pairs of first word i are pairs[starts[i] :
    starts[i + 1]], and followers the numbers of their second words, sorted.
    """

    words: tuple[str, ...]
    alone: np.ndarray
    backoff: np.ndarray
    starts: np.ndarray
    followers: np.ndarray
    pairs: np.ndarray

    @classmethod
    def load(cls, path: Path) -> "Bigrams":
        """Of a .safetensors file: TENSORS, the words as lines of UTF-8. Raises CheckpointError."""
        found = weights.read(path)
        if set(found) != set(TENSORS):
            raise CheckpointError(f"{path}: holds {', '.join(found) or 'nothing'}; a language model"
                                  f" of words holds {', '.join(TENSORS)}")  # fmt: skip
        arrays = {name: value.numpy() for name, value in found.items()}
        try:
            words = tuple(arrays.pop("words").tobytes().decode().split("\n"))
        except ValueError as error:
            raise CheckpointError(f"{path}: its words are no UTF-8; copy it again") from error
        made = cls(words, **arrays)
        if not made._is_whole():
            raise CheckpointError(f"{path}: its parts do not fit each other; copy it again")
        return made

    def _is_whole(self) -> bool:
        count, starts, followers = len(self.words), self.starts, self.followers
        return (
            self.alone.shape == (count,)
            and self.backoff.shape == (count + 1,)
            and starts.shape == (count + 2,)
            and starts[0] == 0 and starts[-1] == len(followers)
            and bool((np.diff(starts) >= 0).all())
            and self.pairs.shape == followers.shape
            and bool(((followers >= 0) & (followers < count)).all())
            and all(one < other for one, other in zip(self.words, self.words[1:], strict=False))
        )  # fmt: skip

    @property
    def beginning(self) -> int:
        """What stands before the first word of a text."""
        return len(self.words)

    def number(self, word: str) -> int | None:
        """None: it is not known."""
        place = bisect_left(self.words, word)
        return place if place < len(self.words) and self.words[place] == word else None

    def log_prob(self, before: int | None, word: str) -> float:
        """before: the number of the word before, None: one that is not known."""
        number = self.number(word)
        if number is None:
            return UNKNOWN + LETTER * len(word)
        if before is None:
            return float(self.alone[number])
        first, last = int(self.starts[before]), int(self.starts[before + 1])
        place = first + int(np.searchsorted(self.followers[first:last], number))
        if place < last and self.followers[place] == number:
            return float(self.pairs[place])
        return float(self.backoff[before]) + float(self.alone[number])

    def likeliest(self, beginning: str) -> float:
        """Of words that begin so, known or not, how likely the likeliest is alone."""
        first = bisect_left(self.words, beginning)
        last = bisect_left(self.words, beginning + AFTER_LETTERS, lo=first)
        if last == first:
            return UNKNOWN + LETTER * len(beginning)
        return max(UNKNOWN, float(self.alone[first:last].max()))


class Spelt(NamedTuple):
    """A text of the beam. before: its last whole word's number, as in Bigrams.log_prob.

    opened: what is spelt of the word after that; whole: what the words before it count for; score:
    with the likeliest word that may come of it.
    """

    before: int | None
    opened: str
    whole: float
    score: float


class WordScorer:
    """What texts count for beside their CTC: weight times log probability, and something a word.

    pieces: how each is spelt; one that begins a word, with a space. For one clip.
    """

    def __init__(
        self, bigrams: Bigrams, pieces: Sequence[str], weight: float, word: float
    ) -> None:
        self.bigrams, self.pieces, self.weight, self.word = bigrams, pieces, weight, word
        self.empty = Spelt(bigrams.beginning, "", 0.0, 0.0)
        self._openings: dict[str, float] = {"": 0.0}

    def extended(self, text: Spelt, piece: int) -> Spelt:
        """The text with one more piece."""
        before, opened, whole, _ = text
        spelt = self.pieces[piece]
        letters = spelt.strip()
        if spelt[:1].isspace():
            if opened:
                whole, before = self.ended(text), self.bigrams.number(opened)
            opened = letters
        else:
            opened += letters
        if opened not in self._openings:
            likeliest = self.bigrams.likeliest(opened)
            self._openings[opened] = self.weight * likeliest + self.word
        return Spelt(before, opened, whole, whole + self._openings[opened])

    def ended(self, text: Spelt) -> float:
        """What the text counts for when its last word is whole."""
        if not text.opened:
            return text.whole
        found = self.bigrams.log_prob(text.before, text.opened)
        return text.whole + self.weight * found + self.word


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text by its pieces, and the log probability that the steps say it."""

    ids: tuple[int, ...]
    score: float


def without(log_probs: Tensor, others: Sequence[int]) -> Tensor:
    """The same steps where some classes count as the blank, which is the last one.

    log_probs: (steps, classes). Returns the same shape; the others are impossible in it.
    """
    kept = log_probs.clone()
    kept[:, -1] = torch.logsumexp(log_probs[:, [*others, log_probs.shape[1] - 1]], dim=1)
    kept[:, list(others)] = NEVER
    return kept


def beam_search(
    log_probs: Tensor, beam: int = 16, best: int = 8, scorer: WordScorer | None = None
) -> list[Hypothesis]:
    """The likeliest texts, likeliest first; with a scorer, by what it adds to the scores told.

    log_probs: (steps, pieces + 1), the blank last. beam: texts kept at each step; best: returned.
    """
    blank = log_probs.shape[1] - 1
    values, classes = log_probs.topk(min(PER_STEP, blank + 1), dim=1)
    blanks: list[float] = log_probs[:, blank].tolist()
    # of each text: log probability that its path ends in a blank, and in its last piece
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    spelt: dict[tuple[int, ...], Spelt] = {} if scorer is None else {(): scorer.empty}
    for step, (scores, numbers) in enumerate(zip(values.tolist(), classes.tolist(), strict=True)):
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        own = dict(zip(numbers, scores, strict=True))
        for ids, (on_blank, on_piece) in kept.items():
            either = log_sum(on_blank, on_piece)
            stay, repeat = either + blanks[step], NEVER
            if ids:
                last = ids[-1]
                at_last = own[last] if last in own else float(log_probs[step, last])
                repeat = on_piece + at_last
            _add(found, ids, stay, repeat)
            for number, score in own.items():
                if number == blank or score < LEAST:
                    continue
                before = on_blank if ids and number == ids[-1] else either
                if before > NEVER:
                    longer = (*ids, number)
                    if scorer is not None and longer not in spelt:
                        spelt[longer] = scorer.extended(spelt[ids], number)
                    _add(found, longer, NEVER, before + score)
        worth = {ids: log_sum(*two) + (spelt[ids].score if spelt else 0.0)
                 for ids, two in found.items()}  # fmt: skip
        kept = {ids: found[ids] for ids in sorted(found, key=lambda ids: -worth[ids])[:beam]}
    made = [Hypothesis(ids, log_sum(*two)) for ids, two in kept.items()]
    if scorer is not None:
        made.sort(key=lambda one: -(one.score + scorer.ended(spelt[one.ids])))
    return made[:best]


def _add(
    found: dict[tuple[int, ...], tuple[float, float]], ids: tuple[int, ...], blank: float,
    piece: float,
) -> None:  # fmt: skip
    old = found.get(ids)
    found[ids] = (blank, piece) if old is None else (log_sum(old[0], blank), log_sum(old[1], piece))


def text_score(log_probs: Tensor, ids: Sequence[int]) -> float:
    """The log probability that the steps say these pieces; log_probs: (steps, pieces + 1)."""
    loss = functional.ctc_loss(
        log_probs[:, None], torch.tensor([list(ids)]), torch.tensor([len(log_probs)]),
        torch.tensor([len(ids)]), blank=log_probs.shape[1] - 1, reduction="sum",
    )  # fmt: skip
    return -float(loss)


@torch.inference_mode()
def llm_scores(
    llm: Any, opening: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log probability of each id of each text after the opening, by a stock causal LM."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), len(opening) + longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(opening) + len(row)] = torch.tensor([*opening, *row])
    hidden = llm.model(inputs_embeds=llm.get_input_embeddings()(ids), use_cache=False)
    states = hidden.last_hidden_state[:, len(opening) - 1 : -1]
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    logits = llm.lm_head(states[real]).float()
    each = logits.log_softmax(-1).gather(1, ids[:, len(opening) :][real][:, None])[:, 0]
    return [row.tolist() for row in each.split([len(row) for row in rows])]
