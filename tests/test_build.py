"""Claims about what a training starts from: any source, a stock LLM, another model's hearing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.models import checkpoint
from osum_echat.models.lora import LoraSettings
from osum_echat.training import experiment
from osum_echat.training.stages import StageSettings
from tests.models.test_lora import lora_network
from tests.models.test_starts import stock_llm
from tests.tiny_network import SETTINGS, network
from tests.training.experiment import write_experiment

STARTS = ("init", "model", "tokenizer", "init_encoder", "init_llm", "init_encoder_adapter")


def loaded(**starts: object) -> SimpleNamespace:
    """The part of an experiment that says what training starts from."""
    given = {name: str(place) for name, place in starts.items() if name in STARTS}
    return SimpleNamespace(
        **(dict.fromkeys(STARTS) | given), keep_lora=starts.get("keep_lora", False),
        stage=StageSettings(train=("llm",)),
    )  # fmt: skip


def test_a_published_file_is_a_start_with_its_settings_named_or_beside(tmp_path: Path):
    checkpoint.save_published(tmp_path / "weights" / "one.pt", network())
    checkpoint.write_settings(tmp_path, SETTINGS)
    asked = loaded(init=tmp_path / "weights" / "one.pt", model=tmp_path / "model.yaml")
    settings = experiment.model_settings(asked)
    assert settings == SETTINGS
    model = experiment.network(asked, settings)
    assert torch.equal(model.speech_head.weight, network().speech_head.weight)
    checkpoint.write_settings(tmp_path / "weights", SETTINGS)
    assert experiment.model_settings(loaded(init=tmp_path / "weights" / "one.pt")) == SETTINGS


def test_parts_come_from_a_stock_llm_and_another_models_hearing(tmp_path: Path):
    stock = stock_llm("qwen3", True, tmp_path / "stock")
    checkpoint.save(tmp_path / "heard", network(1))
    checkpoint.write_settings(tmp_path / "sizes", replace(SETTINGS, llm={}))
    asked = loaded(model=tmp_path / "sizes" / "model.yaml", init_llm=tmp_path / "stock",
                       init_encoder_adapter=tmp_path / "heard")  # fmt: skip
    settings = experiment.model_settings(asked)
    assert settings.llm["model_type"] == "qwen3" and settings.llm["vocab_size"] == 40
    model = experiment.network(asked, settings)
    assert torch.equal(model.llm.model.norm.weight, stock.model.norm.weight)
    wanted = network(1).encoder.after_norm.weight
    assert torch.equal(model.encoder.after_norm.weight, wanted)


@pytest.mark.parametrize("keep", [True, False])
def test_lora_layers_are_merged_unless_they_shall_be_kept(tmp_path: Path, keep: bool):
    checkpoint.save(tmp_path, lora_network())
    asked = loaded(init=tmp_path, keep_lora=keep)
    model = experiment.network(asked, experiment.model_settings(asked))
    assert isinstance(model.settings.lora, LoraSettings) == keep
    assert any("lora_A" in name for name, _ in model.named_parameters()) == keep


def test_a_mean_of_weights_in_pieces_is_refused(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, run={"average": 0.9}, engine={"deepspeed": "conf/none.json"})
    with pytest.raises(ConfigError, match=r"run\.average: not with engine\.deepspeed"):
        experiment.build(experiment.load(path))
