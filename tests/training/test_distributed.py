"""Claims about several processes: they train as one would, and go on after a stop."""

import json
from pathlib import Path

import pytest
import torch

from osum_echat.device import Ranks
from osum_echat.errors import ConfigError
from osum_echat.models import checkpoint
from osum_echat.training import trainer
from tests.training.experiment import write_experiment
from tests.training.processes import launch


def test_another_number_of_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"saved by 2 processes.*not 1"):
        Ranks().own([torch.zeros(3), torch.zeros(3)])


def test_without_torchrun_the_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun"):
        Ranks.join(torch.device("cpu"))


def final_weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(path.parent / "out" / trainer.FINAL_FOLDER).state_dict())


@pytest.mark.slow
def test_two_processes_learn_and_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole = write_experiment(tmp_path / "whole")
    launch(whole)
    parted = write_experiment(tmp_path / "parted")
    launch(parted, "run.steps=3")
    launch(parted)
    first, second = final_weights(whole), final_weights(parted)
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (tmp_path / "whole" / "out" / trainer.METRICS_FILE).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line and '"rate"' in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
