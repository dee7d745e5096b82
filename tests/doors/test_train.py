"""Claims about the command train.py."""


import pytest

import train
from tests.training.experiment import write_experiment


def test_a_stage_trains_from_the_command(tmp_path):
    path = write_experiment(tmp_path)
    assert train.main(["--config", str(path), "run.steps=1"]) == 0
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.step=1", "did you mean 'steps'"),
        ("data.lists.t2t.path=gone.list", "gone.list: no such file"),
        ("output=/dev/null/out", "cannot be written (Not a directory)"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, capsys, override, message):
    path = write_experiment(tmp_path)
    assert train.main(["--config", str(path), override]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
    assert errors[-1].startswith("train.py: ")
