"""Claims about kill -9: the training goes on with the very next utterance, to the same weights."""

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest

from osum_echat.training import state, trainer
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
