"""Which sequences share a batch: packed rows, or rows of like length; all of a window are used."""

import random
from collections.abc import Sequence as Items

from osum_echat.sequence import Sequence, pack

Rows = list[list[Sequence]]  # of one batch; a row holds one sequence or several


def packed_batches(
    window: Items[Sequence], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows]:
    """Batches of packed rows; every sequence of the window is in exactly one.

    Rows hold up to `row_tokens` (a longer sequence has its own) and batches up to `rows` rows. Rows
    are shuffled, since packing sorts by length, and spread so that no batch is nearly empty.
    """
    packed = pack(window, row_tokens)
    rng.shuffle(packed)
    count = -(-len(packed) // rows)
    return [packed[number::count] for number in range(count)]


def bucketed_batches(
    window: Items[Sequence], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows]:
    """Batches of one sequence a row, of like length, padded to at most `row_tokens * rows` tokens.

    Causal attention over short rows costs less than masked attention over long packed ones. A
    longer sequence has a batch to itself. The batches are shuffled.
    """
    batches: list[Rows] = []
    for sequence in sorted(window, key=len, reverse=True):
        longest = len(batches[-1][0][0]) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= row_tokens * rows:
            batches[-1].append([sequence])
        else:
            batches.append([[sequence]])
    rng.shuffle(batches)
    return batches


LAYOUTS = {"packed": packed_batches, "bucketed": bucketed_batches}
