"""Claims about key names: there and back, each weight once, the unread ones named."""

import pytest

from osum_echat.models import names
from tests.tiny_network import network


def test_names_go_there_and_back():
    keys = list(network().state_dict())
    assert [names.our_name(names.published_name(name)) for name in keys] == keys
    assert [names.our_name(names.published_name(name, lora=True)) for name in keys] == keys


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("adapter.convs.4.bias", "down_sample_2.conv.4.bias"),
        ("adapter.projection.weight", "speech_llama_proj.weight"),
        ("llm.model.norm.weight", "llama_model.model.norm.weight"),
        ("speech_embedding.weight", "speech_token_emded.weight"),
        ("speech_head.bias", "speech_head.bias"),
        ("encoder.after_norm.bias", "encoder.after_norm.bias"),
    ],
)
def test_a_published_name_is_upstreams_own(ours: str, published: str):
    assert names.published_name(ours) == published and names.our_name(published) == ours


@pytest.mark.parametrize(
    "name",
    [
        "module.speech_token_emded.weight", "_orig_mod.module.speech_token_emded.weight",
        "llama_model.speech_token_emded.weight", "module.llama_model.speech_token_emded.weight",
    ],
)  # fmt: skip
def test_wrappers_and_second_names_lead_to_one(name: str):
    assert names.our_name(name) == "speech_embedding.weight"


def test_a_lora_name_loses_the_prefix_of_its_wrapper():
    name = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert names.our_name(name) == "llm.model.layers.0.self_attn.q_proj.lora_A.default.weight"


def test_what_is_never_read_has_a_reason():
    for name in ("ln_speech.weight", "encoder.embed.pos_enc.pe", "llm._cache.key_cache_3",
                 "llm.model.rotary_emb.inv_freq"):  # fmt: skip
        assert names.why_ignored(name)
    assert names.why_ignored("llm.model.norm.weight") is None


def test_of_several_text_tables_the_last_wins_and_an_untied_head_is_its_own():
    raw = dict(zip(("llama_model.model.embed_tokens.weight", "llama_model.lm_head.weight",
                    "embed_tokens.weight", "lm_head.weight"), "abcd", strict=True))  # fmt: skip
    assert names.named_as_ours(raw, tied=True) == {names.TEXT_TABLE: "d"}
    assert names.named_as_ours(raw, tied=False) == {names.TEXT_TABLE: "c", names.TEXT_HEAD: "d"}
    assert names.named_as_ours({"lm_head.weight": "x"}, tied=True) == {names.TEXT_TABLE: "x"}
