"""A bigram model of words, and what it adds to the texts in the beam of a CTC (ctc_beam.py)."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from osum_echat import weights
from osum_echat.errors import CheckpointError

UNKNOWN, LETTER = -16.0, -1.5   # log probability of a word that is not known, and of its letters
AFTER_LETTERS = "\x7f"          # sorts behind all that words are written with
TENSORS = ("words", "alone", "backoff", "starts", "followers", "pairs")


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
