"""Claims about how sequences share batches."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osum_echat.data.batching import LAYOUTS, Rows, within_frames
from osum_echat.sequence import Sequence


def sequences(count: int = 50) -> list[Sequence]:
    rng = random.Random(1)
    sizes = [rng.randint(5, 60) for _ in range(count)]
    return [
        Sequence(str(number), "t2t", [0] * size, [True] * size, [], [], False)
        for number, size in enumerate(sizes)
    ]


def tokens(rows: Rows[Sequence]) -> int:
    return len(rows) * max(sum(map(len, row)) for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_sequence_is_in_exactly_one_batch(layout: str) -> None:
    batches = LAYOUTS[layout](sequences(), 100, 3, random.Random(0))
    keys = [one.key for rows in batches for row in rows for one in row]
    assert sorted(keys, key=int) == [str(number) for number in range(50)]


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_no_batch_holds_more_than_the_limit(layout: str) -> None:
    assert max(map(tokens, LAYOUTS[layout](sequences(), 100, 3, random.Random(0)))) <= 300


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sequence_over_the_limit_is_kept(layout: str) -> None:
    batches = LAYOUTS[layout](sequences(4), 3, 1, random.Random(0))
    assert sum(len(row) for rows in batches for row in rows) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_makes_no_batch(layout: str) -> None:
    assert LAYOUTS[layout]([], 100, 3, random.Random(0)) == []


def test_packed_batches_are_of_nearly_equal_size() -> None:
    sizes = [len(rows) for rows in LAYOUTS["packed"](sequences(), 100, 6, random.Random(0))]
    assert max(sizes) - min(sizes) <= 1


def test_buckets_hold_one_sequence_a_row_of_like_length() -> None:
    batches = LAYOUTS["bucketed"](sequences(), 100, 3, random.Random(0))
    assert all(len(row) == 1 for rows in batches for row in rows)
    padding = sum(tokens(rows) - sum(len(row[0]) for row in rows) for rows in batches)
    assert padding < 0.15 * sum(map(tokens, batches))


def test_packed_rows_waste_little() -> None:
    batches = LAYOUTS["packed"](sequences(250), 400, 4, random.Random(0))
    used = sum(len(one) for rows in batches for row in rows for one in row)
    assert used > 0.97 * sum(map(tokens, batches))


@given(sizes=st.lists(st.integers(1, 90), max_size=60), limit=st.integers(1, 120),
       rows=st.integers(1, 5), layout=st.sampled_from(sorted(LAYOUTS)))  # fmt: skip
def test_layouts_lose_nothing_and_keep_their_limit(
    sizes: list[int], limit: int, rows: int, layout: str
) -> None:
    window = [Sequence(str(n), "t2t", [0] * size, [True] * size, [], [], False)
              for n, size in enumerate(sizes)]  # fmt: skip
    batches = LAYOUTS[layout](window, limit, rows, random.Random(0))
    kept = [one.key for batch in batches for row in batch for one in row]
    assert sorted(kept, key=int) == [one.key for one in window]
    for batch in batches:
        longest = max(len(one) for row in batch for one in row)
        assert tokens(batch) <= limit * rows or longest > limit


@given(sizes=st.lists(st.integers(1, 50), max_size=40), limit=st.integers(1, 300))
def test_no_batch_has_more_frames_than_allowed(sizes: list[int], limit: int) -> None:
    batches = [[[size] for size in sizes]] if sizes else []
    parted = within_frames(batches, limit, lambda size: [size])  # type: ignore[type-var]
    assert [row[0] for rows in parted for row in rows] == sizes
    for rows in parted:
        assert len(rows) == 1 or len(rows) * max(row[0] for row in rows) <= limit
