"""Which rows share a batch: packed, bucketed by length, or as they come; all of a window are used.

Works on anything with a length in tokens, so that batches are known before sound is decoded.
"""

import random
from collections.abc import Callable, Sized
from collections.abc import Sequence as Items
from typing import TypeVar

from osum_echat.sequence import pack

Item = TypeVar("Item", bound=Sized)
Rows = list[list[Item]]  # of one batch; a row holds one sequence or several


def packed_batches(
    window: Items[Item], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows[Item]]:
    """Batches of packed rows; every sequence of the window is in exactly one.

    Rows hold up to `row_tokens` (a longer sequence has its own) and batches up to `rows` rows. Rows
    are shuffled, since packing sorts by length, and spread so that no batch is nearly empty.
    """
    packed = _even(window, row_tokens)
    rng.shuffle(packed)
    count = -(-len(packed) // rows)
    return [packed[number::count] for number in range(count)]


def _even(window: Items[Item], row_tokens: int) -> Rows[Item]:
    """As few rows as first-fit packing needs, of like length where that can be: less padding."""
    packed = pack(window, row_tokens)
    even: Rows[Item] = [[] for _ in packed]
    sizes = [0] * len(packed)
    for one in sorted(window, key=len, reverse=True):
        least = sizes.index(min(sizes))
        even[least].append(one)
        sizes[least] += len(one)
    return even if max(sizes, default=0) <= row_tokens else packed


def bucketed_batches(
    window: Items[Item], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows[Item]]:
    """Batches of one sequence a row, of like length, padded to at most `row_tokens * rows` tokens.

    Causal attention over short rows costs less than masked attention over long packed ones. A
    longer sequence has a batch to itself. The batches are shuffled.
    """
    batches: list[Rows[Item]] = []
    for sequence in sorted(window, key=len, reverse=True):
        longest = len(batches[-1][0][0]) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= row_tokens * rows:
            batches[-1].append([sequence])
        else:
            batches.append([[sequence]])
    rng.shuffle(batches)
    return batches


def static_batches(
    window: Items[Item], row_tokens: int, rows: int, rng: random.Random
) -> list[Rows[Item]]:
    """Batches of `rows` sequences, one a row, in the order they come; `row_tokens` is no limit."""
    return [
        [[one] for one in window[start : start + rows]] for start in range(0, len(window), rows)
    ]


def within_frames(
    batches: Items[Rows[Item]], limit: int, frames: Callable[[Item], list[int]]
) -> list[Rows[Item]]:
    """The batches, parted where their clips, padded to the longest, would hold over `limit` frames.

    A row whose clips alone are over it has a batch to itself.
    """
    parted: list[Rows[Item]] = []
    for rows in batches:
        count = longest = 0
        for number, row in enumerate(rows):
            clips = [size for one in row for size in frames(one)]
            count, longest = count + len(clips), max([longest, *clips])
            if number == 0 or count * longest > limit:
                parted.append([row])
                count, longest = len(clips), max(clips, default=0)
            else:
                parted[-1].append(row)
    return parted


LAYOUTS = {"packed": packed_batches, "bucketed": bucketed_batches, "static": static_batches}
