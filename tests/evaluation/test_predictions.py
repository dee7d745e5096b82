"""Claims about predictions on disk: what a kill leaves is read back, and names stay apart."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.predictions import Lines, file_name, seed_of


def test_lines_are_there_again_and_the_last_of_a_key_counts(tmp_path):
    with Lines(tmp_path / "a.jsonl") as lines:
        for value in (1, 2):
            lines.add({"key": "k", "value": value})
    with Lines(tmp_path / "a.jsonl") as lines:
        assert lines.found == {"k": {"key": "k", "value": 2}}


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_cut_anywhere_is_dropped_and_what_follows_is_whole(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"key": "a"}\n' + '{"key": "b", "x": "é"}\n'.encode()[:-cut])
    with Lines(path) as lines:
        assert list(lines.found) == ["a"]
        lines.add({"key": "c"})
    assert path.read_bytes() == b'{"key": "a"}\n{"key": "c"}\n'


def test_a_broken_line_in_the_middle_is_told_and_nothing_is_thrown_away(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "a"}\nnot json\n{"key": "b"}\n')
    with pytest.raises(InputError, match="line 2: not JSON"):
        Lines(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"no": "key"}\n')
    with pytest.raises(InputError, match="no object with a key"):
        Lines(tmp_path / "a.jsonl")


def test_threads_do_not_mix_their_lines(tmp_path):
    with Lines(tmp_path / "a.jsonl") as lines, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: lines.add({"key": str(n), "x": "y" * 500}), range(40)))
    with Lines(tmp_path / "a.jsonl") as lines:
        assert set(lines.found) == {str(number) for number in range(40)}


def test_file_names_are_plain_and_never_the_same_for_two_keys():
    keys = ["a", "a/b", "a_b", "../../etc/passwd", "é", "x" * 300, "x" * 301]
    names = [file_name(key) for key in keys]
    assert len(set(names)) == len(keys) and names[0] == "a"
    assert all(len(name) <= 80 and "/" not in name for name in names)


def test_seeds_belong_to_a_run_and_a_key():
    assert seed_of(0, "a") == seed_of(0, "a") != seed_of(0, "b")
    assert seed_of(1, "a") != seed_of(0, "a")
