"""Claims about DeepSpeed: it trains as the plain engine does, and goes on after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common_utils import convert_checkpoint
from osum_echat.errors import ConfigError
from osum_echat.models import checkpoint
from osum_echat.training import state
from osum_echat.training.deepspeed_engine import OURS, PIECES_FOLDER, _config
from osum_echat.training.engine import EngineSettings
from tests.training.experiment import are_same, losses, result, write_experiment
from tests.training.processes import command, kill_when, run

ROOT = Path(__file__).parents[2]
FILES = sorted(one.name for one in (ROOT / "conf").glob("ds_*.json"))


def experiment(folder: Path, file: str, **engine: Any) -> Path:
    settings = {"deepspeed": str(ROOT / "conf" / file), "precision": "fp32", **engine}
    return write_experiment(folder, engine=settings)


@pytest.mark.parametrize("file", FILES)
def test_the_shipped_files_leave_our_settings_to_us(file):
    settings = EngineSettings(deepspeed=str(ROOT / "conf" / file), accumulate=3, clip=2.0)
    made = _config(settings, torch.bfloat16)
    assert made["gradient_accumulation_steps"] == 3 and made["gradient_clipping"] == 2.0
    assert made["bf16"]["enabled"] and made["zero_optimization"]["stage"] in (0, 1, 2, 3)


@pytest.mark.parametrize("key", OURS)
def test_a_file_that_contradicts_a_setting_is_refused(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({key: 1}))
    with pytest.raises(ConfigError, match=f"{key} is decided by"):
        _config(EngineSettings(deepspeed=str(path)), None)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ds_zero0.json", "ds_zero1.json", "ds_zero2.json",
                                  "ds_zero3.json"])  # fmt: skip
def test_two_processes_move_the_weights_as_the_plain_engine_does(tmp_path, file):
    parted = experiment(tmp_path / "parted", file)
    plain = write_experiment(tmp_path / "plain", engine={"precision": "fp32"})
    for path in (parted, plain):
        run(command(path, "run.steps=2"))
    first, second = result(parted), result(plain)
    assert losses(parted) == pytest.approx(losses(plain), rel=1e-4)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=2e-3, rtol=0)
    step = parted.parent / "out" / state.FOLDER / "step_00000002"
    for number, place in enumerate((step, step / PIECES_FOLDER)):
        out = tmp_path / f"ours_{number}"
        assert convert_checkpoint.main([str(place), str(out), "--to", "ours", "--quiet"]) == 0
        assert are_same(first, dict(checkpoint.load(out).state_dict()))


@pytest.mark.slow
def test_killed_in_the_middle_zero_2_goes_on_with_the_same_losses(tmp_path):
    whole, parted = (experiment(tmp_path / name, "ds_zero2.json") for name in ("whole", "parted"))
    run(command(whole))
    folder = tmp_path / "parted" / "out" / state.FOLDER
    saved = folder / "step_00000002"
    assert kill_when(command(parted, "run.save_minutes=1e-9"), saved.exists)
    assert state.newest(tmp_path / "parted" / "out") is not None
    run(command(parted))
    assert losses(parted) == losses(whole) and are_same(result(parted), result(whole))
