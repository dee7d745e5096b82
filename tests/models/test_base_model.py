"""Claims about base models: a directory without their weights computes what the whole one does."""

from pathlib import Path

import pytest
import torch

from osum_echat import paths, weights
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.checkpoint import BaseModel
from osum_echat.models.echat import EChatModel
from osum_echat.models.lora import LoraSettings
from osum_echat.weights import WEIGHTS_FILE, write_safetensors_file
from tests.tiny_network import network

PARTS = {"encoder": BaseModel("hearing", "1" * 64), "llm": BaseModel("writing", "2" * 64)}


@pytest.fixture(params=[False, True], ids=["plain", "lora"])
def whole(request: pytest.FixtureRequest) -> EChatModel:
    made = network()
    if request.param:
        made.add_lora(LoraSettings(rank=2, alpha=4, dropout=0.0, targets=("q_proj", "down_proj")))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    return made


@pytest.fixture
def home(whole: EChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's directory, without what two base models in a cache give."""
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "cache"))
    own = checkpoint.own_weights(whole)
    for part, model in PARTS.items():
        stock = {name: value for name, value in own.items()
                 if name.startswith(f"{part}.") and "lora_" not in name}  # fmt: skip
        inner = {name.partition(".")[2].replace(".base_layer.", "."): value
                 for name, value in stock.items()}  # fmt: skip
        write_safetensors_file(model.folder / WEIGHTS_FILE, inner)
        own = {name: value for name, value in own.items() if name not in stock}
    write_safetensors_file(tmp_path / "model" / WEIGHTS_FILE, own)
    named = {part: {"name": one.name, "sha256": one.sha256} for part, one in PARTS.items()}
    checkpoint.write_settings(tmp_path / "model", whole.settings, {checkpoint.BASE_KEY: named})
    return tmp_path / "model"


def test_a_model_without_the_weights_of_its_bases_is_loaded_whole(home, whole):
    for keep_lora in (False, True):
        loaded = checkpoint.load(home, keep_lora=keep_lora)
        ids = torch.tensor([[1, 2, 3]])
        assert torch.allclose(loaded.llm(ids).logits, whole.llm(ids).logits, atol=1e-3)
        assert torch.equal(loaded.encoder.after_norm.weight, whole.encoder.after_norm.weight)


def test_a_weight_of_its_own_stands(home):
    path = home / WEIGHTS_FILE
    own = {**weights.read(path), "encoder.after_norm.weight": torch.full((8,), 7.0)}
    write_safetensors_file(path, own)
    assert checkpoint.load(home).encoder.after_norm.weight.eq(7).all()


def test_a_base_model_that_is_not_there_is_told_with_what_to_do(home):
    PARTS["llm"].folder.rename(PARTS["llm"].hub_folder)
    checkpoint.load(home)                       # one from the hub does as well
    PARTS["llm"].hub_folder.rename(home / "elsewhere")
    with pytest.raises(CheckpointError, match=r"writing.*base_models"):
        checkpoint.load(home)
