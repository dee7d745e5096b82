"""Claims about infer_with_shards_or_raw.sh: its usage, what it passes on, the bundled lists."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOOR = "infer_with_shards_or_raw.sh"
FAKE = ROOT / "common_utils" / "fake_data"


def run(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return subprocess.run(
        ["bash", str(ROOT / DOOR), *map(str, arguments)], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


def test_without_arguments_it_shows_its_usage_and_lines_that_run():
    told = run()
    assert told.returncode == 0 and told.stdout == run("-h").stdout
    examples = [line.split() for line in told.stdout.splitlines()
                if line.startswith(f"  bash {DOOR} common_utils")]  # fmt: skip
    assert [Path(words[2]).parent.name for words in examples] == ["raw", "shard", "combine"]
    for words in examples:
        assert (ROOT / words[2]).exists() and words[3:] == ["--model", "tiny"]


def test_options_and_odd_names_are_passed_on_as_they_are(tmp_path):
    odd = tmp_path / "a list; touch $(echo pwned) 'x'"
    told = run(odd, "--out", tmp_path / "out", folder=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert f"{odd}: no such file" in told.stderr
    assert list(tmp_path.iterdir()) == []
    assert "unrecognized arguments: --loud" in run(odd, "--loud").stderr
    assert "--batch-size" in run("--help").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["raw/data.list", "shard/shards_list.txt", "combine/combines_list.txt"]
)
def test_the_bundled_lists_run_on_the_tiny_model(name, tmp_path):
    told = run(FAKE / name, "--out", tmp_path, "--greedy", "--model", "tiny", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "10 answered, 0 failed" in told.stdout
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len({one["key"] for one in results}) == 10
    for one in results:
        assert (one["speech_tokens"] > 0) == ("TEXT2TOKEN" in one["task"]) == bool(one["wav"])
        assert one["wav"] is None or (tmp_path / one["wav"]).stat().st_size > 1000
