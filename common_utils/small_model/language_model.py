"""The bigrams of words that the ear's beam listens by (osum_echat/generation/ctc_beam.py).

    python -m common_utils.small_model.language_model --parts build/parts --out build/ear/export

Counts of the recipe's texts (chats but the held-out ones, WordNet's sentences, the tiny world's)
and, as if they were COMMON_WORDS words more, SymSpell's frequency lists of English words and pairs.
Writes language_model.safetensors.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common_utils.command import command
from common_utils.small_model import texts
from common_utils.small_model.pieces import heard_words
from osum_echat.errors import DataError
from osum_echat.generation.ctc_beam import TENSORS
from osum_echat.logs import logger
from osum_echat.weights import write_safetensors_file

FILE = "language_model.safetensors"
WORD_LIST = "symspell/frequency_dictionary_en_82_765.txt"
PAIR_LIST = "symspell/frequency_bigramdictionary_en_243_342.txt"
COMMON_WORDS = 5e6      # that the lists count as
WORDS = (1, 40)         # of a sentence
DISCOUNT = 0.5          # taken from each count, for pairs not seen
LEAST_COUNT = 2         # of a word that the lists do not have
LEAST_GAIN = 4.0        # log probability that all times of a pair together must bring
UNLISTED = 1.05         # pairs in all, to those of the list
USUAL_WORDS = 300       # by which the lists are set beside each other
UNCUT = 0.75            # of whose pairs, by quantile, the list holds nearly all
LEAST_LEFT = 1e-4       # probability
BEGINNING = ""          # before the first word

log = logger(__name__)


def frequencies(path: Path) -> dict[str, float]:
    """A list of words, or of words one after another, with a count at the end of each line."""
    if not path.is_file():
        raise DataError(f"{path}: missing; run common_utils.small_model.parts")
    lines = (line.rsplit(" ", 1) for line in path.read_text("utf-8-sig").splitlines())
    return {words: float(count) for words, count in lines}


@dataclass(frozen=True, slots=True)
class Counts:
    """How often words, and pairs of them, were met. firsts: of a word before any, listed or not."""

    alone: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float]
    firsts: Mapping[str, float]


def counted(said: Iterable[str], words: Mapping[str, float], pairs: Mapping[str, float]) -> Counts:
    """Of sentences, and of lists with frequencies, which are scaled to COMMON_WORDS."""
    own: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    firsts: Counter[str] = Counter()
    for sentence in said:
        found = [BEGINNING, *(heard_words(sentence) or "").split()]
        own.update(found[1:])
        both.update(pairwise(found))
        firsts.update(found[:-1])
    listed: dict[str, float] = dict.fromkeys(words, 0.0)
    for pair, count in pairs.items():
        first, _, _ = pair.partition(" ")
        listed[first] = listed.get(first, 0.0) + count
    usual = sorted(words, key=lambda word: -words[word])[:USUAL_WORDS]
    scale = float(np.quantile([listed[word] / words[word] for word in usual], UNCUT))
    share = COMMON_WORDS / sum(words.values())
    known = words.keys() | {word for word, count in own.items() if count >= LEAST_COUNT}
    alone = {word: own[word] + share * words.get(word, 0.0) for word in known}
    every: dict[tuple[str, str], float] = dict(both)
    for pair, count in pairs.items():
        first, _, second = pair.partition(" ")
        every[first, second] = every.get((first, second), 0.0) + share * count / scale
    kept = {
        (one, other): count for (one, other), count in every.items()
        if other in known and (one in known or one == BEGINNING)
    }  # fmt: skip
    before = {word: firsts[word] + share * max(UNLISTED * listed.get(word, 0.0) / scale,
                                               words.get(word, 0.0))
              for word in (BEGINNING, *known)}  # fmt: skip
    return Counts(alone, kept, before)


def tensors(counts: Counts) -> dict[str, Tensor]:
    """The model by absolute discounting, without the pairs that bring little."""
    words = sorted(counts.alone)
    names = [*words, BEGINNING]
    number = {name: place for place, name in enumerate(names)}
    once = np.array([counts.alone[word] for word in words])
    once = np.log(once / once.sum())
    order = sorted((number[one], number[other]) for one, other in counts.pairs)
    first, second = np.array(order).T
    count = np.array([counts.pairs[names[one], words[other]] for one, other in order])
    total = np.array([counts.firsts[name] or 1.0 for name in names])
    seen = (count - np.minimum(DISCOUNT, count / 2)) / total[first]

    def left(kept: np.ndarray) -> np.ndarray:
        taken = np.bincount(first[kept], seen[kept], len(names))
        return np.log(np.maximum(LEAST_LEFT, 1 - taken))

    rest = left(np.ones(len(first), bool))[first] + once[second]
    kept = count * (np.log(seen + np.exp(rest)) - rest) >= LEAST_GAIN
    backoff = left(kept)
    rest = (backoff[first] + once[second])[kept]
    log.info("%d words, %d of %d pairs", len(words), kept.sum(), len(kept))
    made = (
        np.frombuffer("\n".join(words).encode(), np.uint8).copy(), once.astype(np.float16),
        backoff.astype(np.float16),
        np.searchsorted(first[kept], np.arange(len(names) + 1)).astype(np.int32),
        second[kept].astype(np.int32), np.log(seen[kept] + np.exp(rest)).astype(np.float16),
    )  # fmt: skip
    return dict(zip(TENSORS, map(torch.from_numpy, made), strict=True))


def make(out: Path, parts: Path = Path("build/parts")) -> None:
    """Count the recipe's texts and write the model."""
    lists = [frequencies(parts / name) for name in (WORD_LIST, PAIR_LIST)]
    found = tensors(counted((
        *texts.chat_sentences(parts, False, WORDS), *texts.wordnet_sentences(parts, WORDS),
        *texts.world_sentences(),
    ), *lists))  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors_file(out / FILE, found)


main = command(make)


if __name__ == "__main__":
    sys.exit(main())
