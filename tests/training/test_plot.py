"""Claims about curves: every number of the metrics finds its panel, and a picture comes out."""

import json
from pathlib import Path

import pytest

from osum_echat.errors import DataError
from osum_echat.training import plot
from osum_echat.training.trainer import METRICS_FILE

LINES = [
    {"step": 1, "loss": 3.0, "rate": 0.1, "norm": 1.0, "tasks": {"s2s": {"loss": 3.0}}},
    {"step": 2, "loss": 2.0, "rate": 0.2, "norm": 1.5, "tasks": {"s2s": {"loss": 2.0}}},
    {"step": 2, "held_out": {"tts": {"loss": 4.0, "accuracy": 0.5}}},
]


def write(folder: Path) -> Path:
    text = "".join(f"{json.dumps(line)}\n" for line in LINES)
    (folder / METRICS_FILE).write_text(text)
    return folder


def test_curves_keep_their_steps(tmp_path: Path) -> None:
    curves = plot.read(write(tmp_path))
    assert curves["loss"] == ([1, 2], [3.0, 2.0])
    assert curves["tasks/s2s/loss"] == ([1, 2], [3.0, 2.0])
    assert curves["held_out/tts/accuracy"] == ([2], [0.5])
    assert plot.panels(curves)["loss"] == ["loss", "tasks/s2s/loss"]
    assert plot.panels(curves)["held-out accuracy"] == ["held_out/tts/accuracy"]
    assert "padding share" not in plot.panels(curves)


def test_a_picture_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert plot.main([str(write(tmp_path))]) == 0
    assert (tmp_path / plot.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{tmp_path / plot.PICTURE}\n"


@pytest.mark.parametrize(("text", "said"), [("", "no line yet"), ("{}\n", ":1: not a line")])
def test_what_cannot_be_drawn_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / METRICS_FILE).write_text(text)
    with pytest.raises(DataError, match=said):
        plot.read(tmp_path)
    assert plot.main([str(tmp_path / "absent")]) == 2
