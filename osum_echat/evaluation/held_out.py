"""How the answers of a training's held-out questions are scored: handed down to it by its door."""

from osum_echat.metrics import Confusion, error_rate, normalised_pair
from osum_echat.training.validation import LabelPairs, Pairs, Scoring


def words(pairs: Pairs) -> float:
    """Errors over words, or over characters where they are Chinese, of normalised texts."""
    return error_rate([normalised_pair(*pair) for pair in pairs], "mixed").rate


def labels(pairs: LabelPairs) -> float:
    """The share of labels that is right, in any spelling."""
    return Confusion.of(pairs).accuracy


SCORING = Scoring(words, labels)
