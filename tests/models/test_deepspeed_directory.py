"""Claims about DeepSpeed's directories: read as its own script does, without its code."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osum_echat.errors import CheckpointError
from osum_echat.models import deepspeed_directory
from osum_echat.models.deepspeed_directory import step_folder

GOLDENS = Path(__file__).parents[1] / "goldens" / "deepspeed"


def values(directory: Path, full_precision: bool = False) -> dict[str, torch.Tensor]:
    found = deepspeed_directory.read(directory, full_precision)
    return {name: one.read() for name, one in found.items()}


@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_the_weights_are_those_that_deepspeed_itself_collects(stage: str):
    expected = load_file(GOLDENS / stage / "expected.safetensors")
    found = values(GOLDENS / stage, full_precision=True)
    assert set(found) == set(expected)
    for name, one in expected.items():
        assert torch.equal(found[name].float(), one.float()), name


def test_without_full_precision_the_weights_are_those_computed_with():
    found, exact = values(GOLDENS / "zero2"), values(GOLDENS / "zero2", full_precision=True)
    assert {one.dtype for name, one in found.items() if name != "table"} == {torch.bfloat16}
    assert all(torch.equal(one, exact[name].to(one.dtype)) for name, one in found.items())
    assert torch.equal(found["shared.weight"], found["first.weight"])


def test_shapes_are_known_before_anything_is_read():
    for one in deepspeed_directory.read(GOLDENS / "zero3").values():
        assert tuple(one.read().shape) == one.shape and one.read().dtype == one.dtype


def test_the_newest_step_is_the_one_that_latest_names(tmp_path: Path):
    shutil.copytree(GOLDENS / "zero0", tmp_path / "run")
    assert step_folder(tmp_path / "run") == tmp_path / "run" / "step_3"
    assert step_folder(tmp_path / "run" / "step_3") == tmp_path / "run" / "step_3"
    shutil.copytree(tmp_path / "run" / "step_3", tmp_path / "run" / "step_9")
    assert step_folder(tmp_path / "run") == tmp_path / "run" / "step_3"
    (tmp_path / "run" / "latest").unlink()
    with pytest.raises(CheckpointError, match="give one of step_3, step_9"):
        step_folder(tmp_path / "run")
    (tmp_path / "run" / "latest").write_text("step_7")
    with pytest.raises(CheckpointError, match="names 'step_7', which is not there"):
        step_folder(tmp_path / "run")
    assert step_folder(tmp_path) is None


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "written by 2 ranks, files of 1 are"),
        ("bf16_zero_pp_rank_*_mp_rank_00_optim_states.pt", "ZeRO 3 keeps its weights there"),
        ("zero_pp_rank_1_mp_rank_00_model_states.pt", "too short"),
    ],
)
def test_a_rank_that_is_missing_is_told(tmp_path: Path, lost: str, message: str):
    shutil.copytree(GOLDENS / "zero3", tmp_path / "run")
    for path in (tmp_path / "run" / "step_3").glob(lost):
        path.unlink()
    with pytest.raises(CheckpointError, match=message):
        values(tmp_path / "run")


def test_another_class_than_the_known_ones_is_refused(tmp_path: Path):
    folder = tmp_path / "step_1"
    folder.mkdir()
    torch.save({"module": {}, "x": Path("/")}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="nothing was run"):
        values(folder)
    with pytest.raises(CheckpointError, match="holds no DeepSpeed checkpoint"):
        values(GOLDENS)
