"""Claims about LoRA: merged is the same model, kept is the same model too, misfits are told."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.models import checkpoint, names
from osum_echat.models.echat import EChatModel
from osum_echat.models.lora import DOWN, LoraSettings
from osum_echat.sequence import collate
from tests.tiny_network import SETTINGS, VOCAB, network, row

LORA = LoraSettings(rank=3, alpha=6, dropout=0.0)
WITH_LORA = replace(SETTINGS, lora=LORA)


def lora_network() -> EChatModel:
    """A network whose LoRA layers do something."""
    torch.manual_seed(4)
    model = EChatModel(WITH_LORA).eval()
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "lora_" in name:
                part.normal_(0, 0.3)
    return model


def hidden(model: EChatModel) -> Tensor:
    with torch.no_grad():
        return model(collate([[row("s2s")]], VOCAB))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    checkpoint.save_published(tmp_path / "model.pt", lora_network())
    return tmp_path / "model.pt"


def test_a_file_with_lora_has_upstreams_names(published: Path):
    stored = set(torch.load(published, weights_only=True))
    layer = "llama_model.base_model.model.model.layers.1.self_attn.q_proj"
    assert {f"{layer}.base_layer.weight", f"{layer}.base_layer.bias", f"{layer}{DOWN}"} <= stored
    assert {"llama_model.base_model.model.lm_head.weight", "embed_tokens.weight"} <= stored


def test_merged_is_the_same_model_without_the_layers(published: Path):
    model = checkpoint.load(published, WITH_LORA)
    assert model.settings.lora is None and not any("lora" in name for name in model.state_dict())
    assert torch.allclose(hidden(model), hidden(lora_network()), atol=1e-4)
    assert not torch.allclose(hidden(model), hidden(network()), atol=1e-2)


def test_kept_is_the_same_model_with_them_and_goes_on(published: Path, tmp_path: Path):
    model = checkpoint.load(published, WITH_LORA, keep_lora=True)
    assert torch.equal(hidden(model), hidden(lora_network()))
    checkpoint.save(tmp_path / "ours", model)
    again = checkpoint.load(tmp_path / "ours", keep_lora=True)
    assert again.settings.lora == LORA and torch.equal(hidden(again), hidden(model))
    assert torch.allclose(hidden(checkpoint.load(tmp_path / "ours")), hidden(model), atol=1e-4)


def test_a_merged_weight_is_rounded_once(published: Path):
    whole = checkpoint.load(published, WITH_LORA)
    raw = torch.load(published, weights_only=True)
    rounded = published.with_name("rounded.pt")
    torch.save({name: value.bfloat16() for name, value in raw.items()}, rounded)
    merged = checkpoint.load(rounded, WITH_LORA, dtype=None)
    weight = "llm.model.layers.0.mlp.down_proj.weight"
    theirs, ours = whole.state_dict()[weight], merged.state_dict()[weight]
    assert ours.dtype == torch.bfloat16
    assert (theirs - ours.float()).abs().max() < theirs.abs().max() * 2**-7


def test_plain_weights_load_where_the_settings_speak_of_lora(tmp_path: Path):
    checkpoint.save_published(tmp_path / "plain.pt", network())
    assert checkpoint.load(tmp_path / "plain.pt", WITH_LORA, keep_lora=True).settings.lora is None


def change(path: Path, mark: str, value: Tensor | None) -> None:
    raw = torch.load(path, weights_only=True)
    name = next(name for name in raw if name.endswith(mark))
    raw = {key: one for key, one in raw.items() if key != name}
    torch.save(raw if value is None else {**raw, name: value}, path)


def test_misfits_are_told(published: Path):
    with pytest.raises(CheckpointError, match="holds LoRA layers, and its settings no alpha"):
        checkpoint.load(published, SETTINGS)
    with pytest.raises(CheckpointError, match=r"do not fit the base .* and rank 8"):
        checkpoint.load(published, replace(SETTINGS, lora=LoraSettings(8, 6)))
    change(published, "lora_B.default.weight", None)
    with pytest.raises(CheckpointError, match="lora_A without lora_B"):
        checkpoint.load(published, WITH_LORA)


def test_a_target_that_is_not_there_is_an_unexpected_key(published: Path):
    raw = torch.load(published, weights_only=True)
    extra = names.published_name("llm.model.layers.9.mlp.up_proj.lora_A.default.weight")
    torch.save({**raw, extra: torch.zeros(3, 16)}, published)
    with pytest.raises(CheckpointError, match=r"unexpected: .*layers\.9"):
        checkpoint.load(published, WITH_LORA, keep_lora=True)


@pytest.mark.parametrize("targets", [(), ("q_proj", "lm_head")])
def test_layers_outside_the_blocks_are_no_targets(targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="name layers of the blocks"):
        LoraSettings(targets=targets)


def test_a_model_gets_lora_layers_once() -> None:
    model = network()
    model.add_lora(LoraSettings(rank=2))
    assert model.settings.lora == LoraSettings(rank=2)
    with pytest.raises(ConfigError, match="has LoRA layers"):
        model.add_lora(LoraSettings(rank=2))
