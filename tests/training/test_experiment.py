"""Claims about experiments: what their YAML says, and what a training starts from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from osum_echat.data.manifest import read_manifest
from osum_echat.errors import ConfigError
from osum_echat.models import checkpoint
from osum_echat.models.lora import LoraSettings
from osum_echat.training import experiment
from osum_echat.training.stages import StageSettings
from tests.models.test_checkpoint import lora_network
from tests.models.test_pretrained import stock_llm
from tests.tiny_network import SETTINGS, network, save_published
from tests.training.experiment import write_experiment

CONF = Path(__file__).parents[2] / "conf"
SHIPPED = sorted(CONF.glob("*/stage*.yaml"))
MANIFESTS = sorted(CONF.glob("osum_echat/data_*.yaml"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize("shipped", [*SHIPPED, CONF / "small" / "talker.yaml"],
                         ids=lambda one: f"{one.parent.name} {one.stem}")  # fmt: skip
def test_the_shipped_stages_are_read(shipped):
    data = experiment.load(shipped).data
    assert data.lists or data.manifests


def test_the_published_mix_is_readable_and_each_kind_has_its_file():
    assert [one.stem for one in MANIFESTS] == ["data_s2s", "data_s2t", "data_t2s", "data_t2t"]
    for one in MANIFESTS:
        entries = read_manifest(str(one))
        assert all(entry.weight > 0 for entry in entries)
        assert len({entry.path for entry in entries}) == len(entries) > 0


@pytest.mark.parametrize(("override", "message"), [
    ("run.step=7", r"stage\.yaml\.run\.step: no such setting; did you mean 'steps'"),
    ("data.lists.t2t.wait=1", r"lists\.t2t\.wait: no such setting; did you mean 'weight'"),
    ("run.steps=1.5", "1.5 where a whole number is needed"),
    ("data=5", "5 where a mapping of settings is needed"),
    ("engine.hearing=1", r"engine\.hearing: is named ctc_weight now; rename it"),
    ("engine.ctc_weight=1", "engine.ctc_weight: needs prepare.ctc_targets"),
    ("seed=-1", "seed: -1, need 0 or more"), ("run.steps=-1", "run.steps: -1, need 0 or more"),
    ("engine.beta_2=1", "engine.beta_2: 1.0, need 0 to below 1"),
    ("stage.rates.llm=-1", "stage.rates: llm -1.0, need 0 or more"),
    ("model=null", "give `init`, or both `model` and `tokenizer`"),
    ("run.average=0.9 engine.deepspeed=none.json", r"run\.average: not with engine\.deepspeed"),
    ("run.check_answers=1 data.held_out=null", r"run\.check_answers: needs data\.held_out"),
    ("stage.train=[]", "name what trains"),
    ("stage.train=[ears]", "'ears' is not one of encoder, adapter"),
    ("stage.train=[adapter] stage.lora={}", r"stage\.lora: trains within"),
    ("engine.ctc_only=true", r"engine\.ctc_only: needs the weight"),
    ("engine.share_start=true engine.recompute=true", "share_start: not with engine.recompute"),
    ("engine.encoder_cache_file=f", r"needs the memory engine\.encoder_cache_mb"),
    ("schedule.kind=cosine schedule.rate=-1", "schedule.rate: -1.0, need 0 or more"),
])  # fmt: skip
def test_a_wrong_setting_is_told(path, override, message):
    with pytest.raises(ConfigError, match=message):
        experiment.load(path, override.split())


STARTS = ("init", "model", "tokenizer", "init_encoder", "init_llm", "init_encoder_adapter")


def starting(**starts: object) -> SimpleNamespace:
    """The part of an experiment that says what training starts from."""
    given = {name: str(place) for name, place in starts.items() if name in STARTS}
    return SimpleNamespace(
        **(dict.fromkeys(STARTS) | given), keep_lora=starts.get("keep_lora", False),
        stage=StageSettings(train=("llm",)),
    )  # fmt: skip


def test_a_published_file_is_a_start_with_its_settings_named_or_beside(tmp_path):
    save_published(tmp_path / "weights" / "one.pt", network())
    checkpoint.write_settings(tmp_path, SETTINGS)
    asked = starting(init=tmp_path / "weights" / "one.pt", model=tmp_path / "model.yaml")
    settings = experiment.model_settings(asked)
    assert settings == SETTINGS
    model = experiment.network(asked, settings)
    assert torch.equal(model.speech_head.weight, network().speech_head.weight)
    checkpoint.write_settings(tmp_path / "weights", SETTINGS)
    assert experiment.model_settings(starting(init=tmp_path / "weights" / "one.pt")) == SETTINGS


def test_parts_come_from_a_stock_llm_and_another_models_hearing(tmp_path):
    stock = stock_llm("qwen3", True, tmp_path / "stock")
    checkpoint.save(tmp_path / "heard", network(1))
    checkpoint.write_settings(tmp_path / "sizes", replace(SETTINGS, llm={}))
    asked = starting(model=tmp_path / "sizes" / "model.yaml", init_llm=tmp_path / "stock",
                       init_encoder_adapter=tmp_path / "heard")  # fmt: skip
    settings = experiment.model_settings(asked)
    assert settings.llm["model_type"] == "qwen3" and settings.llm["vocab_size"] == 40
    model = experiment.network(asked, settings)
    assert torch.equal(model.llm.model.norm.weight, stock.model.norm.weight)
    wanted = network(1).encoder.after_norm.weight
    assert torch.equal(model.encoder.after_norm.weight, wanted)


@pytest.mark.parametrize("keep", [True, False])
def test_lora_layers_are_merged_unless_they_shall_be_kept(tmp_path, keep):
    checkpoint.save(tmp_path, lora_network())
    asked = starting(init=tmp_path, keep_lora=keep)
    model = experiment.network(asked, experiment.model_settings(asked))
    assert isinstance(model.settings.lora, LoraSettings) == keep
    assert any("lora_A" in name for name, _ in model.named_parameters()) == keep
