"""Claims about kill -9 and DeepSpeed: a training goes on, with the next utterance, as it would."""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from common_utils import convert_checkpoint
from osum_echat.errors import ConfigError
from osum_echat.models import checkpoint
from osum_echat.training import state, trainer
from osum_echat.training.deepspeed_engine import OURS, PIECES_FOLDER, _config
from osum_echat.training.engine import EngineSettings
from tests.training.experiment import are_same, losses, result, write_experiment
from tests.training.processes import command, kill_when, run

SCRIPT = "tests/training/recorded.py"
STEPS = 8


def trained(log: Path) -> dict[int, list]:
    """The utterances of every step; what was done twice counts as it was done last."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return {one["step"]: one["keys"] for one in map(json.loads, lines)}


def workers_left(folder: Path) -> list[str]:
    """Processes that still work on the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it ended meanwhile
            if str(folder) in words:
                found.append(words)
    return found


def is_saving(folder: Path, step: int) -> bool:
    """A checkpoint of that step, or of a later one, is being written or is there."""
    names = [one.name.strip(".").removesuffix(".part") for one in folder.glob("*step_*")]
    return any(name >= f"step_{step:08d}" for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 1)])
def test_killed_again_and_again_it_trains_to_the_same_weights(tmp_path, processes, workers):
    settings = [f"run.steps={STEPS}", f"data.workers={workers}", "run.average=0.9"]
    for name in ("whole", "parts"):
        path, log = write_experiment(tmp_path / name), tmp_path / f"{name}.log"
        words = command(path, str(log), *settings, "run.save_minutes=1e-9", script=SCRIPT,
                        processes=processes)  # fmt: skip
        if name == "parts":
            folder = path.parent / "out" / state.FOLDER
            times = [partial(is_saving, folder, step) for step in (2, 5)]
            kills = [kill_when(words, is_time, processes > 1) for is_time in times]
            assert any(kills) and not (path.parent / "out" / trainer.FINAL_FOLDER).exists()
            limit = time.monotonic() + 20
            while workers_left(path.parent) and time.monotonic() < limit:
                time.sleep(0.1)
            assert workers_left(path.parent) == []
        run(words)
    whole, parts = (tmp_path / name / "stage.yaml" for name in ("whole", "parts"))
    assert losses(parts) == losses(whole) and len(losses(whole)) == STEPS
    assert losses(whole)[-1] < losses(whole)[0] and are_same(result(parts), result(whole))
    for rank in range(processes):
        seen, again = (trained(tmp_path / f"{name}.log.{rank}") for name in ("whole", "parts"))
        assert again == seen and list(seen) == list(range(1, STEPS + 1))


# DeepSpeed: it trains as the plain engine does, and goes on after a kill

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
