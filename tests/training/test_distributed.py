"""Claims about several processes: they train as one would, and go on after a stop."""

import json
from pathlib import Path

import pytest
import torch

from osum_echat.data.loader import Loader, open_sources
from osum_echat.device import Ranks
from osum_echat.errors import ConfigError, DataError
from osum_echat.models import checkpoint
from osum_echat.training import experiment, trainer
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


def share(path: Path, rank: int, world: int) -> list[str]:
    """What one of several processes reads in the first epoch."""
    whole = experiment.build(experiment.load(path, [])).batches
    assert isinstance(whole, Loader)
    weighted = open_sources(whole.settings)
    part = Loader(weighted, whole.preparer, whole.settings, whole.seed, rank, world)
    return [str(visit) for visit in part.windows.share(0)]


def test_each_process_reads_another_share_and_none_is_left_out(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    shares = [share(path, rank, 3) for rank in range(3)]
    assert sorted(visit for one in shares for visit in one) == sorted(share(path, 0, 1))
    with pytest.raises(DataError, match="each of 1000 processes"):
        share(path, 999, 1000)


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
