"""Claims about chains of stages: each comes after what it starts from."""

from pathlib import Path

import pytest
import yaml

from osum_echat import chain
from osum_echat.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"


def write(folder: Path, name: str, output: str, init: str | None) -> None:
    raw = {
        "output": output, "init": init, "model": "model.yaml", "tokenizer": "tokenizer",
        "data": {"lists": {"a": {"path": "a.list"}}}, "stage": {"train": ["llm"]},
        "schedule": {}, "run": {"steps": 1},
    }  # fmt: skip
    (folder / name).write_text(yaml.safe_dump(raw))


@pytest.mark.parametrize("folder", ["tiny", "osum_echat"])
def test_the_shipped_stages_are_in_order(folder: str) -> None:
    names = [path.stem for path in chain.stages(CONF / folder)]
    assert names == sorted(names) and len(names) >= 5


def test_the_order_is_that_of_init_not_of_names(tmp_path: Path) -> None:
    write(tmp_path, "stage1.yaml", "exp/z", "exp/y/final")
    write(tmp_path, "stage2.yaml", "exp/y", None)
    write(tmp_path, "stage3.yaml", "exp/x", "exp/z/best")
    assert [path.stem for path in chain.stages(tmp_path)] == ["stage2", "stage1", "stage3"]


def test_stages_that_wait_for_each_other_are_told(tmp_path: Path) -> None:
    write(tmp_path, "stage1.yaml", "exp/a", "exp/b/final")
    write(tmp_path, "stage2.yaml", "exp/b", "exp/a/final")
    with pytest.raises(ConfigError, match="each starts from another's output"):
        chain.stages(tmp_path)


def test_one_output_for_two_stages_is_told(tmp_path: Path) -> None:
    write(tmp_path, "stage1.yaml", "exp/a", None)
    write(tmp_path, "stage2.yaml", "exp/a", None)
    with pytest.raises(ConfigError, match="write to one output: exp/a"):
        chain.stages(tmp_path)


def test_a_folder_without_stages_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no stage"):
        chain.stages(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        chain.stages(tmp_path / "absent")


def test_the_command_prints_one_stage_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "stage1.yaml", "exp/a", None)
    assert chain.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'stage1.yaml'}\n"
    assert chain.main([str(tmp_path / "absent")]) == 2
    assert chain.main([str(tmp_path), "run.stepz=1"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
