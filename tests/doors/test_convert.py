"""Claims about the doors that convert: one line for what is wrong, a report of every key."""

from pathlib import Path

import torch

from common_utils import convert_checkpoint, convert_ckpt_dir_to_pt
from osum_echat.models import checkpoint
from tests.tiny_network import SETTINGS, network

DEEPSPEED = Path(__file__).parents[1] / "goldens" / "deepspeed" / "zero2"


def test_a_conversion_tells_of_every_key_and_how_many(tmp_path: Path, capsys):
    checkpoint.save_published(tmp_path / "one.pt", network())
    checkpoint.write_settings(tmp_path / "conf", SETTINGS)
    arguments = [str(tmp_path / "one.pt"), str(tmp_path / "ours"), "--to", "ours",
                 "--config", str(tmp_path / "conf" / "model.yaml")]  # fmt: skip
    assert convert_checkpoint.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = torch.load(tmp_path / "one.pt", weights_only=True)
    assert len(lines) == len(keys) + 1
    assert lines[-1].endswith(f"{len(keys)} keys placed, 0 left out")
    assert convert_checkpoint.main(arguments) == 2
    assert capsys.readouterr().err.startswith("convert_checkpoint.py: ")


def test_a_deepspeed_directory_goes_into_one_file_beside_it(tmp_path: Path, capsys):
    (tmp_path / "run").symlink_to(DEEPSPEED)
    assert convert_ckpt_dir_to_pt.main([str(tmp_path / "run"), "--quiet"]) == 0
    assert "first.weight" in torch.load(tmp_path / "run.pt", weights_only=True)
    assert convert_ckpt_dir_to_pt.main([str(tmp_path / "gone")]) == 2
    assert "no such directory" in capsys.readouterr().err
