"""Claims about starting from others' weights: a stock LLM computes the same inside our model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel
from osum_echat.models.starts import llm_settings, start_encoder_adapter, start_llm
from tests.tiny_network import LLM, SETTINGS, network

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]


def stock_llm(kind: str, tied: bool, directory: Path) -> torch.nn.Module:
    """A stock LLM with random weights, saved as its publishers do."""
    import transformers

    torch.manual_seed(6)
    sizes = SIZES | ({"head_dim": 8} if kind == "qwen3" else {})
    config = getattr(transformers, f"{kind.title()}Config")(**sizes, tie_word_embeddings=tied)
    model = getattr(transformers, f"{kind.title()}ForCausalLM")(config).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn_like(part) * 0.3)
    model.save_pretrained(directory, max_shard_size="10KB")
    return model


def started(directory: Path) -> EChatModel:
    model = EChatModel(replace(SETTINGS, llm=llm_settings(directory))).eval()
    start_llm(model, directory)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_a_stock_llm_computes_the_same_inside(tmp_path: Path, kind: str, tied: bool):
    stock = stock_llm(kind, tied, tmp_path / "stock")
    assert len(list((tmp_path / "stock").glob("*.safetensors"))) > 1
    model = started(tmp_path / "stock")
    ids = torch.randint(0, 40, (2, 9))
    wanted = stock(ids).logits
    segments, positions = torch.zeros_like(ids), torch.arange(9).expand(2, 9)
    hidden = model.run(model.embed_ids(ids), segments, positions)
    assert torch.allclose(model.logits_text(hidden), wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_every_kind_is_saved_published_and_loaded(tmp_path: Path, kind: str, tied: bool):
    stock_llm(kind, tied, tmp_path / "stock")
    model = started(tmp_path / "stock")
    checkpoint.save(tmp_path / "ours", model)
    checkpoint.save_published(tmp_path / "theirs.pt", model)
    for place in (tmp_path / "ours", tmp_path / "theirs.pt"):
        again = checkpoint.load(place, model.settings)
        assert all(
            torch.equal(value, again.state_dict()[name])
            for name, value in model.state_dict().items()
        )
        assert (again.llm.lm_head.weight is again.llm.model.embed_tokens.weight) == tied


def test_an_llm_of_other_sizes_is_one_error_with_both_shapes(tmp_path: Path):
    stock_llm("qwen2", True, tmp_path)
    sizes = {**SIZES, "intermediate_size": 20, "num_hidden_layers": 3}
    model = EChatModel(replace(SETTINGS, llm=sizes))
    with pytest.raises(CheckpointError) as caught:
        start_llm(model, tmp_path)
    assert "missing: llm.model.layers.2.mlp.gate_proj.weight [20, 16]" in str(caught.value)
    assert "up_proj.weight [24, 16] there, [20, 16] by the settings" in str(caught.value)


def test_an_llm_of_another_kind_or_none_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json: .*put the config\.json"):
        llm_settings(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLM, "model_type": "llama"}))
    with pytest.raises(Exception, match="'llama': only qwen2, qwen3"):
        replace(SETTINGS, llm=llm_settings(tmp_path))


def test_encoder_and_adapter_come_from_another_model_and_nothing_else(tmp_path: Path):
    source, model = network(1), network(2)
    before = model.speech_head.weight.clone()
    checkpoint.save_published(tmp_path / "osum.pt", source)
    start_encoder_adapter(model, tmp_path / "osum.pt")
    for name, value in model.state_dict().items():
        if name.startswith(("encoder.", "adapter.")):
            assert torch.equal(value, source.state_dict()[name]), name
    assert torch.equal(model.speech_head.weight, before)


def test_a_projection_to_another_width_starts_anew(tmp_path: Path, caplog):
    wide = replace(SETTINGS, llm={**LLM, "hidden_size": 24})
    checkpoint.save(tmp_path, network(1))
    model = EChatModel(wide)
    before = model.adapter.projection.weight.clone()
    start_encoder_adapter(model, tmp_path)
    assert torch.equal(model.adapter.projection.weight, before)
    assert torch.equal(model.encoder.after_norm.weight, network(1).encoder.after_norm.weight)
    assert "an LLM of width 16, here 24: it starts anew" in caplog.text
