"""Claims about parts: what was written is found again, what was torn is not, one writer each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation import parts
from osum_echat.evaluation.parts import Part, Tally, find_results, read_results


def record(index: int, error: str | None = None) -> dict[str, object]:
    return {"index": index, "key": f"k{index}", "text": "很好\n" * index, "error": error}


def write(folder: Path, rank: int, *records: dict[str, object]) -> None:
    with Part(folder, rank) as part:
        part.write(records)


def test_results_of_all_parts_come_in_the_order_of_the_list(tmp_path: Path) -> None:
    write(tmp_path, 1, record(3), record(0))
    write(tmp_path, 0, record(2))
    write(tmp_path, 1, record(5))
    found = find_results(tmp_path)
    assert sorted(found) == [0, 2, 3, 5]
    assert [one["index"] for one in read_results(found, 4)] == [0, 2, 3]
    assert next(iter(read_results(found, 4))) == record(0)


@pytest.mark.parametrize("torn", [b'{"index": 7', b'{"index": 7, "error": null}', b"x" * 200_000])
def test_a_torn_last_line_is_no_result_and_goes_when_its_part_is_opened(
    tmp_path: Path, torn: bytes
) -> None:
    write(tmp_path, 0, record(0), record(1))
    path = tmp_path / "part-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert sorted(find_results(tmp_path)) == [0, 1]
    write(tmp_path, 0, record(2))
    assert path.read_bytes().startswith(whole) and sorted(find_results(tmp_path)) == [0, 1, 2]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_part_that_is_nothing_but_torn_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "part-00000.jsonl").write_bytes(b"x" * 100)
    write(tmp_path, 0, record(0))
    assert sorted(find_results(tmp_path)) == [0]


def test_a_line_that_is_no_result_is_left_out(tmp_path: Path, caplog) -> None:
    write(tmp_path, 0, record(0))
    with (tmp_path / "part-00000.jsonl").open("ab") as file:
        file.write(b'rubbish\n[1]\n{"key": "a"}\n')
    write(tmp_path, 0, record(1))
    assert sorted(find_results(tmp_path)) == [0, 1]
    assert caplog.text.count("no result at byte") == 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_answer_counts_before_a_failure_wherever_it_stands(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    both = (record(4, "failed"), record(4))
    write(tmp_path, 0, both[order[0]])
    write(tmp_path, 1, both[order[1]])
    found = find_results(tmp_path)
    assert not found[4].failed and [one["error"] for one in read_results(found, 9)] == [None]


def test_a_part_has_one_writer_as_long_as_it_lives(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "_PATIENCE_S", 0.2)
    hold = (
        "import sys; from pathlib import Path; from osum_echat.evaluation.parts import Part\n"
        "part = Part(Path(sys.argv[1]), 0); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is writing here"):
            Part(tmp_path, 0)
        write(tmp_path, 1, record(1))
        other.kill()
    write(tmp_path, 0, record(0))
    assert sorted(find_results(tmp_path)) == [0, 1]


def test_a_tally_counts_what_is_new(tmp_path: Path) -> None:
    write(tmp_path, 0, record(0), record(1))
    tally = Tally(tmp_path)
    assert tally.new() == 0
    write(tmp_path, 0, record(2))
    write(tmp_path, 3, record(3), record(4))
    assert (tally.new(), tally.new()) == (3, 0)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.*choose another --out"):
        Part(tmp_path / "file", 0)
