"""Claims about the benchmark of the tiny world: right replies are counted, limits are judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import tiny_world
from common_utils.tiny_world.world import load_world
from osum_echat.generation.decoder import Limits
from osum_echat.inference import request
from osum_echat.inference.assistant import EChat


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few exchanges of the test split; noise in the place of voices."""
    root = tmp_path_factory.mktemp("split")
    noise = np.random.default_rng(4).normal(0, 0.1, 8_000)
    soundfile.write(root / "noise.wav", noise, 16_000)
    rows = [one.to_json() | {"wav": "noise.wav", "reply_wav": "noise.wav"}
            for one in load_world().exchanges("test", 1, 40)]  # fmt: skip
    (root / "exchanges.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


@pytest.fixture
def bench(model_directory: Path, split: Path, monkeypatch: pytest.MonkeyPatch) -> tiny_world.Bench:
    monkeypatch.setattr(request, "LIMITS", Limits(8, 16))
    echat = EChat.load(model_directory, device="cpu")
    return tiny_world.Bench(echat, split, limit=2, spoken=2, judge=None)


def test_a_model_that_says_nothing_is_never_right(bench):
    for name in ("understanding", "s2s_think_label", "s2t", "t2t", "identity"):
        figures = list(tiny_world.PARTS[name](bench))
        assert figures, name
        assert all(one.value == 0 for one in figures if one.name.endswith("right reply"))


def test_a_model_that_knows_the_world_is_always_right(bench, monkeypatch):
    def reply(source, **options):
        exchange = next(one for one in bench.exchanges if one["user_text"] == source)
        text = bench.world.text_reply(exchange)
        return type("Known", (), {"text": text})

    monkeypatch.setattr(bench.assistant, "reply", reply)
    (figure,) = tiny_world.PARTS["t2t"](bench)
    assert (figure.value, figure.verdict) == (100.0, "ok")


def test_the_door_writes_its_figures(model_directory, split, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(request, "LIMITS", Limits(8, 16))
    options = ["--data", split, "--model", model_directory, "--limit", 1, "--only", "asr",
               "--json", tmp_path / "figures.json"]  # fmt: skip
    assert tiny_world.main([str(option) for option in options]) == 0
    assert "ASR word errors" in capsys.readouterr().out
    names = [one["name"] for one in json.loads((tmp_path / "figures.json").read_text())]
    assert names[0].startswith("ASR") and "all: peak memory" in names
