"""Claims about converting: no key lost, no bit changed, either way, and every key told of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.convert import EXTRAS_FILE, collect, convert
from tests.models.test_lora import LORA, hidden, lora_network
from tests.tiny_network import SETTINGS, network

GOLDENS = Path(__file__).parents[1] / "goldens"
PUBLISHED = GOLDENS / "model"


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


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


def test_a_published_file_comes_back_bit_for_bit(published: Path, tmp_path: Path):
    convert(published, tmp_path / "ours", "ours")
    convert(tmp_path / "ours", tmp_path / "back.pt", "upstream")
    convert(published, tmp_path / "straight.pt", "upstream")
    original = state(published / "m.pt")
    assert same(state(tmp_path / "back.pt"), original)
    assert same(state(tmp_path / "straight.pt"), original)
    convert(tmp_path / "back.pt", tmp_path / "again", "ours", published / "model.yaml")
    for name in ("model.safetensors", EXTRAS_FILE):
        one, other = load_file(tmp_path / "ours" / name), load_file(tmp_path / "again" / name)
        assert same(one, other)


def test_every_key_of_the_source_is_told_of(published: Path, tmp_path: Path):
    lines = convert(published, tmp_path / "ours", "ours")
    assert {line.name for line in lines} == set(state(published / "m.pt"))
    by_name = {line.name: line for line in lines}
    assert by_name["speech_token_emded.weight"].became == "speech_embedding.weight"
    assert by_name["embed_tokens.weight"].note == "another name of it"
    assert by_name["ln_speech.bias"].note == "not read: a norm that upstream never applies"
    assert str(by_name["lm_head.weight"]).startswith("lm_head.weight  ->  llm.model.embed_tokens")


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
    assert same(dict(loaded.state_dict()), dict(network().state_dict()))


def test_manner_and_small_files_go_along(tmp_path: Path):
    checkpoint.save(tmp_path / "one", network(), notes={"thinking": "natural"})
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "one", tmp_path / "two", "ours")
    assert yaml.safe_load((tmp_path / "two" / "model.yaml").read_text())["thinking"] == "natural"
    assert (tmp_path / "two" / "tokenizer.json").is_file()
    convert(PUBLISHED, tmp_path / "three", "ours")
    assert yaml.safe_load((tmp_path / "three" / "model.yaml").read_text())["thinking"] == "either"


def test_lora_is_merged_and_told(tmp_path: Path):
    model = lora_network()
    checkpoint.save_published(tmp_path / "model.pt", model)
    checkpoint.write_settings(tmp_path, model.settings)
    assert model.settings.lora == LORA
    lines = convert(tmp_path, tmp_path / "ours", "ours")
    merged = [line for line in lines if line.note == "LoRA, merged"]
    assert merged and all(line.became.startswith("llm.model.layers") for line in merged)
    assert torch.allclose(hidden(checkpoint.load(tmp_path / "ours")), hidden(model), atol=1e-4)


def test_what_cannot_be_converted_is_told_and_nothing_is_left_behind(tmp_path: Path):
    checkpoint.save(tmp_path / "ours", network())
    for target, kind, message in (
        ("ours", "ours", "is there already"), ("new", "upstream", r"give a name in \.pt"),
        ("new", "gguf", "choose one of ours, upstream, hf"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "ours", tmp_path / target, kind)
    with pytest.raises(CheckpointError, match="keys do not fit"):
        convert(PUBLISHED, tmp_path / "new", "ours", tmp_path / "ours" / "model.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_the_stock_directory_needs_no_tokenizer_and_tells_its_ids(tmp_path: Path):
    lines = convert(PUBLISHED, tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    speech = json.loads((tmp_path / "hf" / "speech.json").read_text())
    rows = json.loads((PUBLISHED / "llm_config.json").read_text())["vocab_size"]
    assert config["vocab_size"] == rows + speech["speech_codes"] + 3
    assert speech["edge"] == rows + speech["speech_codes"] == config["eos_token_id"] - 2
    left = {line.name for line in lines if line.note == "not of the LLM"}
    assert left and all(name.startswith(("encoder.", "adapter.")) for name in left)


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_a_deepspeed_directory_becomes_one_file(tmp_path: Path, name: str):
    directory = GOLDENS / "deepspeed" / "zero2"
    lines = collect(directory, tmp_path / name, full_precision=True)
    read = load_file if name.endswith("tensors") else state
    expected = load_file(directory / "expected.safetensors")
    assert same(read(tmp_path / name), expected) and len(lines) == len(expected)
    with pytest.raises(CheckpointError, match="is there already"):
        collect(directory, tmp_path / name)
