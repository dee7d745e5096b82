"""Claims about a raw list in pieces."""

from pathlib import Path

import pytest

from osum_echat.corpus.raw_lines import pieces, records
from osum_echat.data.sources import Dropped
from osum_echat.errors import DataError, InputError


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_the_pieces_hold_every_record_once_in_order(tmp_path: Path, size: int, end: str):
    path = tmp_path / "a.list"
    rows = [f'{{"key": "{number}"}}' for number in range(7)]
    path.write_text("\n\n".join(rows) + end)
    found = pieces(path, size)
    assert [piece.count for piece in found[:-1]] == [size] * (len(found) - 1)
    read = [(where, raw) for piece in found for where, raw in records(piece)]
    assert [raw["key"] for _, raw in read if isinstance(raw, dict)] == [str(n) for n in range(7)]
    assert [where for where, _ in read] == [f"{path} (record {n + 1})" for n in range(7)]


def test_a_line_that_is_no_record_is_told_where_it_stands(tmp_path: Path):
    path = tmp_path / "a.list"
    path.write_bytes(b'{"key": "a"}\n{oops\n[]\n\xff\n')
    (piece,) = pieces(path, 10)
    left = [raw for _, raw in records(piece) if isinstance(raw, Dropped)]
    assert [one.reason for one in left] == ["not JSON", "not an object", "not JSON"]
    assert "record 3" in left[1].detail


def test_a_list_without_records_or_that_shrinks_is_an_error(tmp_path: Path):
    path = tmp_path / "a.list"
    with pytest.raises(DataError, match="no such file"):
        pieces(path, 1)
    path.write_text("\n \n")
    with pytest.raises(DataError, match="no records"):
        pieces(path, 1)
    path.write_text("{}\n{}\n")
    (piece,) = pieces(path, 2)
    path.write_text("{}\n")
    with pytest.raises(InputError, match="changed while it was read"):
        list(records(piece))
