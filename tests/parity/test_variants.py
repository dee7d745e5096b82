"""Claims about files that hold the same model otherwise: upstream's ids come out all the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.parity import decoding
from tests.parity.fixture import Fixture
from tests.parity.rows import table

GOLDEN = Path(__file__).parents[1] / "goldens" / "model"
RANK, ALPHA = 4, 32
TABLES = ("llama_model.lm_head.weight", "embed_tokens.weight", "lm_head.weight")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
Weights = dict[str, Tensor]


def with_lora(weights: Weights) -> Weights:
    """As trained with LoRA: each target is the weight less the change that its layers make."""
    torch.manual_seed(8)
    made: Weights = {}
    for name, value in weights.items():
        inner = name.replace("llama_model.", "llama_model.base_model.model.", 1)
        target, _, kind = inner.rpartition(".")
        if not target.endswith(TARGETS):
            made[inner] = value
            continue
        made[f"{target}.base_layer.{kind}"] = value
        if kind == "weight":
            down, up = torch.randn(RANK, value.shape[1]), torch.randn(value.shape[0], RANK) * 0.02
            made[f"{target}.lora_A.default.weight"] = down
            made[f"{target}.lora_B.default.weight"] = up
            made[f"{target}.base_layer.{kind}"] = value.float() - up @ down * (ALPHA / RANK)
    assert any("lora_A" in name for name in made)
    return made


def without_aliases(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if name not in TABLES}


def with_the_last_alias_alone(weights: Weights) -> Weights:
    table = weights["llama_model.model.embed_tokens.weight"]
    lone = {name: value for name, value in weights.items() if "embed_tokens" not in name}
    return without_aliases(lone) | {"lm_head.weight": table}


def with_prefixes(weights: Weights) -> Weights:
    return {f"module._orig_mod.{name}": value for name, value in weights.items()}


def in_half_precision(weights: Weights) -> Weights:
    return {name: value.half() for name, value in weights.items()}


def in_mixed_types(weights: Weights) -> Weights:
    types = (torch.bfloat16, torch.float32, torch.float16)
    return {name: value.to(types[place % 3]) for place, (name, value) in enumerate(weights.items())}


def after_an_inference(weights: Weights) -> Weights:
    """As upstream's module is saved once it has answered: second names, a cache, rotary rates."""
    return weights | {
        "llama_model.speech_token_emded.weight": weights["speech_token_emded.weight"],
        "llama_model.speech_head.bias": weights["speech_head.bias"],
        "llama_model._cache.key_cache_0": torch.zeros(1, 2, 8, 16),
        "llama_model._cache.value_cache_0": torch.full((1, 2, 8, 16), torch.nan),
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "encoder.embed.pos_enc.pe": torch.zeros(1, 9, 9), "ln_speech.weight": torch.ones(3),
    }  # fmt: skip


VARIANTS = (with_lora, without_aliases, with_the_last_alias_alone, with_prefixes,
            in_half_precision, in_mixed_types, after_an_inference)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.__name__)
def test_the_ids_stay_upstreams(variant: Callable[[Weights], Weights], tmp_path: Path):
    for name in ("model.yaml", "llm_config.json", "token_ids.json", "short.wav", "long.wav",
                 "generate.json", "generate.npz", "columns.npz", "processors.json"):  # fmt: skip
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    settings = yaml.safe_load((GOLDEN / "model.yaml").read_text())
    settings |= {"use_lora": True, "lora_rank": RANK, "lora_alpha": ALPHA}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(settings))
    weights = torch.load(GOLDEN / "model.pt", weights_only=True)
    torch.save(variant(weights), tmp_path / "model.pt")
    found = [row for row in decoding.rows(Fixture(tmp_path)) if row.name.endswith(" ids")]
    assert len(found) > 6 and all(row.status == "ok" for row in found), table(found)
