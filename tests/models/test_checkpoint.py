"""Claims about stored models: nothing lost, nothing skipped in silence, either set of names."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from osum_echat import EChat
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.echat import EChatModel
from osum_echat.models.lora import LoraSettings
from osum_echat.paths import PUBLISHED_SETTINGS
from osum_echat.sequence import collate
from tests.tiny_network import SETTINGS, VOCAB, network, row, save_published

TABLE, HEAD = checkpoint.TEXT_TABLE, checkpoint.TEXT_HEAD
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
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "model", network(), notes={"thinking": "both"})
    return tmp_path / "model"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save_published(tmp_path / "model.pt", network())
    return tmp_path / "model.pt"


@pytest.fixture
def with_lora(tmp_path: Path) -> Path:
    save_published(tmp_path / "lora.pt", lora_network())
    return tmp_path / "lora.pt"


def resave(path: Path, change: Callable[[dict], object]) -> None:
    raw = torch.load(path, weights_only=True)
    torch.save(change(raw) or raw, path)


def same(ours, theirs) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(one == two and torch.equal(a, b) for (one, a), (two, b) in pairs)


def test_of_several_text_tables_the_last_wins_and_an_untied_head_is_its_own():
    raw = dict(zip(("llama_model.model.embed_tokens.weight", "llama_model.lm_head.weight",
                    "embed_tokens.weight", "lm_head.weight"), "abcd", strict=True))  # fmt: skip
    assert checkpoint.named_as_ours(raw, tied=True) == {TABLE: "d"}
    assert checkpoint.named_as_ours(raw, tied=False) == {TABLE: "c", HEAD: "d"}
    assert checkpoint.named_as_ours({"lm_head.weight": "x"}, tied=True) == {TABLE: "x"}


def test_save_then_load_is_the_same_model(saved: Path):
    model = checkpoint.load(saved)
    assert same(model, network()) and model.settings == SETTINGS and not model.training
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert torch.equal(hidden(model), hidden(network()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    stored = load_file(saved / checkpoint.WEIGHTS_FILE)
    assert TABLE in stored and HEAD not in stored
    assert yaml.safe_load((saved / checkpoint.SETTINGS_FILE).read_text())["thinking"] == "both"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_smaller_storage_type_rounds_once(tmp_path: Path, dtype: torch.dtype):
    checkpoint.save(tmp_path, network(), dtype=dtype)
    stored = load_file(tmp_path / checkpoint.WEIGHTS_FILE)
    assert {value.dtype for value in stored.values()} == {dtype}
    assert same(checkpoint.load(tmp_path), network().to(dtype).float())
    assert checkpoint.load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_published_file_loads_and_its_extras_are_ignored(good: Path):
    extras = ("ln_speech.weight", "encoder.embed.pos_enc.pe", "llama_model._cache.key_cache_0",
              "speech_transformer.embed.pos_enc.pe", "llama_model.model.rotary_emb.inv_freq")
    resave(good, lambda raw: raw.update(dict.fromkeys(extras, torch.zeros(1)), epoch=7))
    assert same(checkpoint.load(good, SETTINGS), network())
    resave(good, lambda raw: {f"_orig_mod.module.{name}": value for name, value in raw.items()})
    assert same(checkpoint.load(good, SETTINGS), network())


NORM = "encoder.after_norm.bias"
TERABYTES = torch.zeros(1).as_strided((1_000_000, 500_000), (0, 0))     # by its own words


@pytest.mark.parametrize(("keep", "change", "message"), [
    (".", {"speech_head.bias": torch.zeros(9)}, r"mis-shaped: speech_head\.bias \[9\] there, \[65"),
    (".", {NORM: TERABYTES}, "mis-shaped"),
    (r"^((?!layers\.1\.).)*$", {}, r"missing: llm\.model\.layers\.1\.mlp\.gate_proj"),
    (".", {NORM: torch.full((8,), torch.nan)}, r"not finite .*encoder\.after_norm\.bias \[8\]"),
    (".", {"speech_head.weight": torch.full((65, 16), -torch.inf)}, r"not finite .*speech_head\.w"),
    (".", {NORM: torch.zeros(8).int()}, "of the wrong type"),
    ("^$", {"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)},
     r"unexpected: conv\.bias \[3\].*; and 72 more; .*--config.*model=null"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(good: Path, keep: str, change, message: str):
    resave(good, lambda raw: {key: raw[key] for key in raw if re.search(keep, key)} | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(good, SETTINGS)
    assert str(good) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS_FILE, checkpoint.SETTINGS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.load(saved)
    with pytest.raises(CheckpointError, match="nowhere: no such model"):
        checkpoint.load(saved / "nowhere")
    (saved / "notes.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"notes\.txt: no file of weights"):
        checkpoint.load(saved / "notes.txt", SETTINGS)


def test_sizes_that_no_llm_can_have_are_told(saved: Path):
    settings = replace(SETTINGS, llm={**SETTINGS.llm, "hidden_act": "none such"})
    with pytest.raises(CheckpointError, match="llm: no Qwen2 can have these sizes") as caught:
        checkpoint.load(saved, settings)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_llm_is_refused(model_directory: Path, tmp_path: Path):
    shutil.copytree(model_directory, tmp_path, dirs_exist_ok=True)
    raw = yaml.safe_load((tmp_path / "model.yaml").read_text())
    llm = raw["llm"] | {"eos_token_id": 151645}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(raw | {"llm": llm}))
    with pytest.raises(CheckpointError, match=r"not this model's tokenizer: .* with 151645"):
        EChat.load(tmp_path, device="cpu", speaks=False)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        EChat.load(tmp_path, device="cpu", speaks=False)


def test_a_published_file_takes_the_settings_beside_it_those_given_or_the_published(good: Path):
    assert pretrained.find(good).settings == PUBLISHED_SETTINGS
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight \[131, 16\] there"):
        checkpoint.load(good)
    checkpoint.write_settings(good.parent, SETTINGS)
    assert pretrained.find(good.parent).weights == good
    assert pretrained.find(good).settings == good.with_name("model.yaml")
    other = Path(shutil.copyfile(good.with_name("model.yaml"), good.with_name("other.yaml")))
    given = pretrained.find(good, other)
    assert given.settings == other and given.home == good.parent
    assert same(checkpoint.load(good), network())
    with pytest.raises(CheckpointError, match=r"gone\.yaml: no such settings"):
        pretrained.find(good, good.with_name("gone.yaml"))
    shutil.copyfile(good, good.with_name("second.pt"))
    with pytest.raises(CheckpointError, match=r"name one of model\.pt, second\.pt"):
        pretrained.find(good.parent)


def test_an_llm_alone_is_no_model_and_the_error_says_what_it_is_good_for(saved: Path):
    (saved / "model.yaml").rename(saved / "config.json")
    with pytest.raises(CheckpointError, match=r"an LLM alone.*init_llm"):
        pretrained.find(saved)


def test_the_folders_of_a_training_are_resolved(tmp_path: Path):
    out, step = tmp_path / "out", tmp_path / "out" / "checkpoints" / "step_2"
    step.mkdir(parents=True)
    engine = {"model": dict(network().state_dict()), "optimizer": {"state": {}}}
    torch.save({"engine": engine, "batches": torch.zeros(1), "average": None}, step / "state.pt")
    (step.parent / "latest").write_text("step_2\n")
    with pytest.raises(CheckpointError, match=r"step_2.model\.yaml: no such file.*--config YAML"):
        checkpoint.load(out)
    checkpoint.write_settings(step, SETTINGS, {"tokenizer": str(tmp_path / "words")})
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    for place in (out, step.parent, step):
        assert pretrained.find(place).weights == step / "state.pt"
        assert same(checkpoint.load(place), network())
    assert pretrained.find(out).tokenizer() == tmp_path / "words"
    checkpoint.save(out / "final", network(1))
    assert same(checkpoint.load(out), network(1)) and same(checkpoint.load(step), network())
    (step / "model.yaml").unlink()
    assert pretrained.find(step).settings == out / "final" / "model.yaml"
    pieces = step / "deepspeed" / "pieces"
    pieces.mkdir(parents=True)
    raw = {f"model.{name}": value for name, value in network(2).state_dict().items()}
    torch.save({"module": raw}, pieces / "mp_rank_00_model_states.pt")
    (pieces.parent / "latest").write_text("pieces")
    for place in (step, step / "deepspeed", pieces):
        assert same(checkpoint.load(place), network(2))


def test_the_tokenizer_is_looked_for_beside_and_where_the_settings_say(good: Path):
    checkpoint.write_settings(good.parent, SETTINGS, {"tokenizer": "far/away"})
    found = pretrained.find(good.parent)
    with pytest.raises(CheckpointError, match=r"no tokenizer .*far/away.*give --tokenizer DIR"):
        found.tokenizer()
    for place in ("far/away", "llm"):
        (good.parent / place).mkdir(parents=True)
        (good.parent / place / "tokenizer.json").write_text("{}")
        assert found.tokenizer() == good.parent / place


def test_merged_is_the_same_model_and_kept_goes_on(with_lora: Path, tmp_path: Path):
    merged = checkpoint.load(with_lora, WITH_LORA)
    assert merged.settings.lora is None and not any("lora" in name for name in merged.state_dict())
    assert torch.allclose(hidden(merged), hidden(lora_network()), atol=1e-4)
    assert not torch.allclose(hidden(merged), hidden(network()), atol=1e-2)
    kept = checkpoint.load(with_lora, WITH_LORA, keep_lora=True)
    assert torch.equal(hidden(kept), hidden(lora_network()))
    checkpoint.save(tmp_path / "ours", kept)
    again = checkpoint.load(tmp_path / "ours", keep_lora=True)
    assert again.settings.lora == LORA and torch.equal(hidden(again), hidden(kept))
    assert torch.allclose(hidden(checkpoint.load(tmp_path / "ours")), hidden(kept), atol=1e-4)


def test_a_merged_weight_is_rounded_once_and_the_file_stays(with_lora: Path):
    whole = checkpoint.load(with_lora, WITH_LORA)
    resave(with_lora, lambda raw: {name: value.bfloat16() for name, value in raw.items()})
    before = with_lora.read_bytes()
    merged = checkpoint.load(with_lora, WITH_LORA, dtype=None)
    weight = "llm.model.layers.0.mlp.down_proj.weight"
    theirs, ours = whole.state_dict()[weight], merged.state_dict()[weight]
    assert ours.dtype == torch.bfloat16 and with_lora.read_bytes() == before
    assert (theirs - ours.float()).abs().max() < theirs.abs().max() * 2**-7


def test_lora_layers_that_do_not_fit_are_told(with_lora: Path, good: Path):
    assert checkpoint.load(good, WITH_LORA, keep_lora=True).settings.lora is None
    with pytest.raises(CheckpointError, match="holds LoRA layers, and its settings no alpha"):
        checkpoint.load(with_lora, SETTINGS)
    with pytest.raises(CheckpointError, match=r"do not fit the base .* and rank 8"):
        checkpoint.load(with_lora, replace(SETTINGS, lora=LoraSettings(8, 6)))
    extra = checkpoint.published_name("llm.model.layers.9.mlp.up_proj.lora_A.default.weight")
    resave(with_lora, lambda raw: raw.update({extra: torch.zeros(3, 16)}))
    with pytest.raises(CheckpointError, match=r"unexpected: .*layers\.9"):
        checkpoint.load(with_lora, WITH_LORA, keep_lora=True)
    resave(with_lora, lambda raw: {name: one for name, one in raw.items() if "lora_B" not in name})
    with pytest.raises(CheckpointError, match="lora_A without lora_B"):
        checkpoint.load(with_lora, WITH_LORA)
