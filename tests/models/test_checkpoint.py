"""Claims about stored models and settings: nothing lost or skipped in silence, either names."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from common_utils import convert_checkpoint, convert_ckpt_dir_to_pt
from osum_echat import EChat, paths, weights
from osum_echat.errors import CheckpointError, InputError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models import convert as converter
from osum_echat.models.checkpoint import BaseModel
from osum_echat.models.convert import EXTRAS_FILE, KeyReport, PhaseMask
from osum_echat.models.echat import EChatModel
from osum_echat.models.lora import LoraSettings
from osum_echat.models.settings import read_settings
from osum_echat.paths import PUBLISHED_SETTINGS
from osum_echat.sequence import collate
from osum_echat.weights import WEIGHTS_FILE, write_safetensors_file
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
    """Whether two models or files of weights hold the same names, types and bits."""
    one, other = (each.state_dict() if isinstance(each, EChatModel) else each
                  for each in (ours, theirs))  # fmt: skip
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


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


@pytest.mark.parametrize(("change", "place", "message"), [
    ({"model.safetensors": "a"}, "", r"model\.safetensors: no such file"),
    ({"model.yaml": "a"}, "", r"model\.yaml: No such file"),
    ({"model.yaml": "config.json"}, "", r"an LLM alone.*init_llm"),
    ({}, "nowhere", "nowhere: no such model"),
    ({"model.yaml": "notes.txt"}, "notes.txt", r"notes\.txt: no file of weights"),
])  # fmt: skip
def test_what_holds_no_model_is_told(saved: Path, change: dict[str, str], place: str, message: str):
    for name, other in change.items():
        (saved / name).rename(saved / other)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved / place)


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


# A directory without the weights of its base models

PARTS = {"encoder": BaseModel("hearing", "1" * 64), "llm": BaseModel("writing", "2" * 64)}


@pytest.fixture(params=[False, True], ids=["plain", "lora"])
def whole(request: pytest.FixtureRequest) -> EChatModel:
    return lora_network() if request.param else network()


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


def test_a_weight_of_its_own_stands_and_a_base_model_that_is_not_there_is_told(home):
    path = home / WEIGHTS_FILE
    own = {**weights.read(path), "encoder.after_norm.weight": torch.full((8,), 7.0)}
    write_safetensors_file(path, own)
    assert checkpoint.load(home).encoder.after_norm.weight.eq(7).all()
    PARTS["llm"].folder.rename(PARTS["llm"].hub_folder)
    checkpoint.load(home)                       # one from the hub does as well
    PARTS["llm"].hub_folder.rename(home / "elsewhere")
    with pytest.raises(CheckpointError, match=r"writing.*base_models"):
        checkpoint.load(home)


# Settings: ours and upstream's

ENCODER = {"output_size": 8, "attention_heads": 2, "linear_units": 16, "num_blocks": 1,
           "dropout_rate": 0.1}  # fmt: skip
UPSTREAM = {"input_dim": 6, "speech_token_num": 65, "lora_alpha": 16, "lora_rank": 4,
            "encoder_conf": ENCODER}  # fmt: skip


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    (tmp_path / "ct_config.yaml").write_text(yaml.safe_dump(UPSTREAM))
    (tmp_path / "llm_config.json").write_text('{"vocab_size": 10, "rms_norm_eps": 1e-06}')
    return tmp_path / "ct_config.yaml"


def change(path: Path, **values: object) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def test_upstreams_settings_are_read_their_llm_in_three_places(upstream: Path):
    settings = read_settings(upstream)
    assert settings.encoder == SETTINGS.encoder and settings.speech_codes == 64
    assert settings.llm["rms_norm_eps"] == 1e-6 and settings.lora == LoraSettings(4, 16.0, 0.1)
    config = (upstream.parent / "llm_config.json").read_text()
    (upstream.parent / "llm_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"llm_config\.json: .* put the config\.json"):
        read_settings(upstream)
    change(upstream, llm_path="prepared/qwen")
    for place in ("prepared/qwen", "llm"):
        (upstream.parent / place).mkdir(parents=True)
        (upstream.parent / place / "config.json").write_text(config)
        assert read_settings(upstream).llm["vocab_size"] == 10


@pytest.mark.parametrize(("text", "message"), [
    ("encoder: {}\nadapter: {}", "llm: missing"),
    ("encoder: {headz: 2}\nadapter: {}\nllm: {}", "headz: .*did you mean 'heads'"),
    ("encoder: {width: 9}\nadapter: {}\nllm: {}", "width 9: must be even"),
    ("encoder: {}\nadapter: {}\nllm: {model_type: llama}", "only qwen2, qwen3 can be used"),
    ("encoder: {}\nadapter: {}\nllm: {hidden_size: -1}", "llm.hidden_size -1: need a whole n"),
    ("encoder: {}\nadapter: {}\nllm: {}\nspeech_codes: -5", "speech_codes -5: need 1 or more"),
    ("encoder: {}\nadapter: {}\nllm: {}\nrecogniser: {}", "recogniser: .*mean 'recognizer'"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_settings(tmp_path)
    assert "model.yaml" in str(caught.value) or "llm_config" in str(caught.value)


@pytest.mark.parametrize(("values", "message"), [
    ({"encoder_conf": {"output_size": 8}}, "attention_heads"),
    ({"encoder_conf": {**ENCODER, "input_layer": "conv2d"}}, "input_layer 'conv2d': only"),
    ({"adapter_type": "osum_echat2"}, "adapter_type 'osum_echat2': only 'osum_echat'"),
])  # fmt: skip
def test_settings_of_upstream_that_are_not_ours_to_run_are_told(upstream, values, message):
    change(upstream, **values)
    with pytest.raises(CheckpointError, match=message):
        read_settings(upstream)


# Converting: no key lost, no bit changed, either way, and every key told of.

GOLDENS = Path(__file__).parents[1] / "goldens"
PUBLISHED = GOLDENS / "model"
STATES = "mp_rank_00_model_states.pt"


def convert(place: Path, target: Path, kind: str, config: Path | None = None) -> list[KeyReport]:
    return converter.convert(pretrained.find(place, config), target, kind)


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published file with every key that upstream has, in several types, with its settings."""
    original = state(PUBLISHED / "model.pt")
    width = original["encoder.after_norm.weight"].shape[0]
    extras = {
        "encoder.embed.pos_enc.pe": torch.randn(1, 30, width),
        "speech_transformer.embed.pos_enc.pe": torch.randn(1, 20, width).half(),
        "ln_speech.weight": torch.randn(width), "ln_speech.bias": torch.randn(width).bfloat16(),
    }  # fmt: skip
    tables = ("llama_model.model.embed_tokens.weight", "llama_model.lm_head.weight",
              "embed_tokens.weight", "lm_head.weight")  # fmt: skip
    table = original[tables[0]]
    original["speech_head.bias"] = original["speech_head.bias"].float()
    (tmp_path / "published").mkdir()
    torch.save(original | extras | dict.fromkeys(tables, table), tmp_path / "published" / "m.pt")
    for name in ("model.yaml", "llm_config.json"):
        shutil.copyfile(PUBLISHED / name, tmp_path / "published" / name)
    return tmp_path / "published"


def test_a_published_file_comes_back_bit_for_bit_each_key_told(published: Path, tmp_path: Path):
    lines = {line.name: line for line in convert(published, tmp_path / "ours", "ours")}
    convert(tmp_path / "ours", tmp_path / "back.pt", "upstream")
    convert(published, tmp_path / "straight.pt", "upstream")
    original = state(published / "m.pt")
    assert lines.keys() == original.keys()
    assert lines["embed_tokens.weight"].note == "another name of it"
    assert lines["ln_speech.bias"].note == "not read: a norm that upstream never applies"
    assert str(lines["lm_head.weight"]).startswith("lm_head.weight  ->  llm.model.embed_tokens")
    assert same(state(tmp_path / "back.pt"), original)
    assert same(state(tmp_path / "straight.pt"), original)
    convert(tmp_path / "back.pt", tmp_path / "again", "ours", published / "model.yaml")
    for name in ("model.safetensors", EXTRAS_FILE):
        one, other = load_file(tmp_path / "ours" / name), load_file(tmp_path / "again" / name)
        assert same(one, other)


def test_a_model_of_ours_gets_every_key_that_upstream_has(tmp_path: Path):
    checkpoint.save(tmp_path / "ours", network(), notes={"thinking": "both"})
    lines = convert(tmp_path / "ours", tmp_path / "theirs.pt", "upstream")
    theirs = state(tmp_path / "theirs.pt")
    assert {name.split(".")[0] for name in theirs} == {
        "encoder", "ln_speech", "speech_transformer", "llama_model", "down_sample_2", "lm_head",
        "speech_llama_proj", "embed_tokens", "speech_token_emded", "speech_head",
    }  # fmt: skip
    assert theirs["encoder.embed.pos_enc.pe"].shape == (1, 30_000, 8)
    assert theirs["speech_transformer.embed.pos_enc.pe"].shape == (1, 5_000, 8)
    assert sum(line.note.startswith("made") for line in lines) == 4
    loaded = checkpoint.load(tmp_path / "theirs.pt", SETTINGS)
    assert same(loaded, network())


def test_what_the_assistant_reads_and_small_files_go_along(tmp_path: Path):
    notes = {"thinking": "natural", "ctc_weight": 0.5, "text_loop": {"times": 4}}
    checkpoint.save(tmp_path / "one", network(), notes=notes)
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "one", tmp_path / "two", "ours")
    kept = yaml.safe_load((tmp_path / "two" / "model.yaml").read_text())
    assert {name: kept[name] for name in notes} == notes
    assert (tmp_path / "two" / "tokenizer.json").is_file()
    (tmp_path / "words").mkdir()
    (tmp_path / "one" / "tokenizer.json").rename(tmp_path / "words" / "tokenizer.json")
    checkpoint.write_settings(tmp_path / "one", SETTINGS, {"tokenizer": str(tmp_path / "words")})
    convert(tmp_path / "one", tmp_path / "far", "ours")
    assert (tmp_path / "far" / "tokenizer.json").is_file()
    assert "tokenizer" not in yaml.safe_load((tmp_path / "far" / "model.yaml").read_text())
    convert(PUBLISHED, tmp_path / "three", "ours")
    assert yaml.safe_load((tmp_path / "three" / "model.yaml").read_text())["thinking"] == "either"


def test_what_cannot_be_converted_is_told_and_nothing_is_left_behind(tmp_path: Path):
    checkpoint.save(tmp_path / "ours", network())
    (tmp_path / "file").write_text("in the way")
    for target, kind, message in (
        ("ours", "ours", "is there already"), ("new", "upstream", r"give a name in \.pt"),
        ("new", "gguf", "choose one of ours, upstream, hf"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "ours", tmp_path / target, kind)
    for target, kind in (("new", "ours"), ("new.pt", "upstream"), ("new", "hf")):
        with pytest.raises(InputError, match="not written"):
            convert(tmp_path / "ours", tmp_path / "file" / target, kind)
    with pytest.raises(CheckpointError, match="keys do not fit"):
        convert(PUBLISHED, tmp_path / "new", "ours", tmp_path / "ours" / "model.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "file"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock directory of upstream's small random model, without a tokenizer."""
    directory = tmp_path_factory.mktemp("export") / "hf"
    lines = convert(PUBLISHED, directory, "hf")
    left = {line.name for line in lines if line.note == "not of the LLM"}
    assert left and all(name.startswith(("encoder.", "adapter.")) for name in left)
    return directory


RUNS = {"t2t_0": (False, False), "tts_1": (True, True), "s2s_think_short": (True, False),
        "multiturn_2": (True, False)}  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("name", RUNS)
def test_stock_generation_with_one_processor_gives_upstreams_ids(exported: Path, name: str):
    from transformers import AutoModelForCausalLM

    record = json.loads((PUBLISHED / "generate.json").read_text())[name]
    embedded = torch.from_numpy(np.load(PUBLISHED / "generate.npz")[f"{name}/inputs_embeds"])[None]
    speaks, from_speech = RUNS[name]
    end = json.loads((PUBLISHED / "token_ids.json").read_text())["<|im_end|>\n"][0]
    mask = PhaseMask.from_directory(exported, speaks, from_speech, end)
    stock = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    ids = stock.generate(inputs_embeds=embedded, logits_processor=[mask], do_sample=False,
                         max_new_tokens=record["n"] + 1)[0].tolist()  # fmt: skip
    wanted = [number if place < record["n_text_steps"] else mask.text_rows + number
              for place, number in enumerate(record["ids"])]  # fmt: skip
    assert ids[: record["n"]] == wanted
    if record["stopped_by"] == "criterion":
        assert ids[record["n"]] == mask.end == stock.config.eos_token_id


def test_the_door_tells_of_every_key_and_how_many(tmp_path: Path, capsys):
    save_published(tmp_path / "one.pt", network())
    checkpoint.write_settings(tmp_path / "conf", SETTINGS)
    arguments = [str(tmp_path / "one.pt"), str(tmp_path / "ours"), "--to", "ours",
                 "--config", str(tmp_path / "conf" / "model.yaml")]  # fmt: skip
    assert convert_checkpoint.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = state(tmp_path / "one.pt")
    assert len(lines) == len(keys) + 1
    assert lines[-1].endswith(f"{len(keys)} keys placed, 0 left out")
    assert convert_checkpoint.main(arguments) == 2
    assert capsys.readouterr().err.startswith("convert_checkpoint.py: ")


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_a_deepspeed_directory_becomes_one_file(tmp_path: Path, capsys, stage: str, name: str):
    directory = str(GOLDENS / "deepspeed" / stage)
    expected = load_file(GOLDENS / "deepspeed" / stage / "expected.safetensors")
    read = load_file if name.endswith("tensors") else state
    assert convert_ckpt_dir_to_pt.main([directory, str(tmp_path / name), "--fp32"]) == 0
    found = read(tmp_path / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(one.float(), found[key].float()) for key, one in expected.items())
    assert convert_ckpt_dir_to_pt.main([directory, str(tmp_path / name)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert convert_ckpt_dir_to_pt.main([str(tmp_path / "gone")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_without_fp32_weights_are_as_computed_with_and_a_missing_rank_is_told(tmp_path, capsys):
    directory = GOLDENS / "deepspeed" / "zero2"
    assert convert_ckpt_dir_to_pt.main([str(directory), str(tmp_path / "a.pt"), "--quiet"]) == 0
    found = state(tmp_path / "a.pt")
    exact = load_file(directory / "expected.safetensors")
    assert {one.dtype for name, one in found.items() if name != "table"} == {torch.bfloat16}
    assert all(torch.equal(one, exact[name].to(one.dtype)) for name, one in found.items())
    shutil.copytree(GOLDENS / "deepspeed" / "zero3", tmp_path / "run")
    next((tmp_path / "run" / "step_3").glob("*rank_1*optim_states.pt")).unlink()
    assert convert_ckpt_dir_to_pt.main([str(tmp_path / "run"), str(tmp_path / "a.pt")]) == 2
    assert "not the whole of what ZeRO left" in capsys.readouterr().err


def test_the_newest_step_is_the_one_that_latest_names(tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(GOLDENS / "deepspeed" / "zero0", run)
    assert checkpoint.deepspeed_states(run) == run / "step_3" / STATES
    shutil.copytree(run / "step_3", run / "step_9")
    assert checkpoint.deepspeed_states(run) == run / "step_3" / STATES
    (run / "latest").write_text("step_7")
    with pytest.raises(CheckpointError, match="names a folder that is not there"):
        checkpoint.deepspeed_states(run)
    (run / "latest").unlink()
    with pytest.raises(CheckpointError, match="give one of step_3, step_9"):
        checkpoint.deepspeed_states(run)
    assert checkpoint.deepspeed_states(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"weights in pieces .*convert_checkpoint\.py"):
        pretrained.find(GOLDENS / "deepspeed" / "zero3")


def test_a_merged_weight_is_rounded_once_and_the_file_stays(with_lora: Path):
    whole = checkpoint.load(with_lora, WITH_LORA)
    resave(with_lora, lambda raw: {name: value.bfloat16() for name, value in raw.items()})
    before = with_lora.read_bytes()
    merged = checkpoint.load(with_lora, WITH_LORA, dtype=None)
    weight = "llm.model.layers.0.mlp.down_proj.weight"
    theirs, ours = whole.state_dict()[weight], merged.state_dict()[weight]
    assert ours.dtype == torch.bfloat16 and with_lora.read_bytes() == before
    assert (theirs - ours.float()).abs().max() < theirs.abs().max() * 2**-7
