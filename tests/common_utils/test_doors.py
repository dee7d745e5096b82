"""Claims about the doors that make corpora: as printed in the README, and on the fake data."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common_utils import (
    extract_speech_tokens,
    make_combine_from_shard,
    make_raw_from_hf,
    make_raw_from_kaldi,
    make_shard_from_raw,
)
from tests.common_utils.reading import assert_equal, read_all

HOUSE = Path(__file__).parents[2]
FAKE = HOUSE / "common_utils" / "fake_data"
FORMS = ("raw/data.list", "shard/shards_list.txt", "combine/combines_list.txt")
DOORS = (
    extract_speech_tokens, make_combine_from_shard, make_raw_from_hf, make_raw_from_kaldi,
    make_shard_from_raw,
)  # fmt: skip


def test_the_fake_data_is_ten_equal_utterances_in_three_forms():
    raw, shard, combined = (read_all(FAKE / form) for form in FORMS)
    assert len(raw) == 10
    assert_equal(raw, shard)
    assert_equal(raw, combined)
    assert sum(one.stat().st_size for one in FAKE.rglob("*") if one.is_file()) < 1_000_000


def test_the_commands_of_the_fake_data_rebuild_it_bit_for_bit(tmp_path: Path):
    copy = tmp_path / "common_utils" / "fake_data"
    made = ("*.tar", "*.finished", "*.txt", "*.json", "shard_*.list", "*.index", "__pycache__")
    shutil.copytree(FAKE, copy, ignore=shutil.ignore_patterns(*made))
    (copy / "combine" / "data.list").unlink()
    shards, combines = "shard/do_make_shard_from_raw.py", "combine/do_make_combine_from_shard.py"
    for script in (shards, combines, combines):     # and where they are, without a report: a clone
        path = f"./common_utils/fake_data/{script}"
        subprocess.run([sys.executable, path], cwd=tmp_path, check=True, capture_output=True)
        for report in copy.rglob("*.report.json"):
            report.unlink()
    for folder in ("shard", "combine"):
        names = {one.name for one in (FAKE / folder).iterdir() if one.is_file()}
        names = {name for name in names if not name.endswith((".index", ".pyc", ".report.json"))}
        assert {one.name for one in (copy / folder).iterdir() if one.is_file()} == names
        for name in names:
            assert (copy / folder / name).read_bytes() == (FAKE / folder / name).read_bytes(), name


def test_a_list_of_which_nothing_can_be_used_is_an_error(tmp_path: Path, capsys):
    raw = tmp_path / "data.list"
    raw.write_text('{"key": "a", "wav": "gone.wav", "txt": "x"}\n')
    assert make_shard_from_raw.main([str(raw), str(tmp_path / "out")]) == 2
    assert "nothing can be used" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__.rpartition(".")[2])
def test_what_is_wrong_is_one_line_and_exit_code_2(door, tmp_path: Path, capsys):
    assert door.main([str(tmp_path / "gone"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{door.__name__.rpartition('.')[2]}.py: ") and "gone" in line
