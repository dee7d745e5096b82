"""Claims about stored models: nothing lost, nothing skipped in silence, either set of names."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, names
from osum_echat.sequence import collate
from tests.tiny_network import SETTINGS, VOCAB, network, row


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "model", network(), notes={"thinking": "both"})
    return tmp_path / "model"


def change(directory: Path, **weights: torch.Tensor | None) -> None:
    """Replace, add or (None) remove weights of a saved model."""
    path = directory / checkpoint.WEIGHTS_FILE
    changed = {**load_file(path), **weights}
    save_file({name: value for name, value in changed.items() if value is not None}, path)


def same(ours, theirs) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(one == two and torch.equal(a, b) for (one, a), (two, b) in pairs)


def test_save_then_load_is_the_same_model(saved: Path):
    model = checkpoint.load(saved)
    assert same(model, network()) and model.settings == SETTINGS and not model.training
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    batch = collate([[row("s2s")]], VOCAB)
    assert torch.equal(model(batch), network()(batch))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_text_table_is_stored_once(saved: Path):
    stored = load_file(saved / checkpoint.WEIGHTS_FILE)
    assert names.TEXT_TABLE in stored and "llm.lm_head.weight" not in stored


def test_further_keys_of_the_settings_are_kept(saved: Path):
    assert yaml.safe_load((saved / checkpoint.SETTINGS_FILE).read_text())["thinking"] == "both"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_smaller_storage_type_rounds_once(tmp_path: Path, dtype: torch.dtype):
    checkpoint.save(tmp_path, network(), dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / checkpoint.WEIGHTS_FILE).values()} == {
        dtype
    }
    assert same(checkpoint.load(tmp_path), network().to(dtype).float())
    assert checkpoint.load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def published(tmp_path: Path, **extra: torch.Tensor) -> Path:
    path = tmp_path / "published.pt"
    checkpoint.save_published(path, network())
    torch.save({**torch.load(path, weights_only=True), **extra}, path)
    return path


def test_a_published_file_loads_and_its_extras_are_ignored(tmp_path: Path):
    nothing = torch.zeros(1)
    path = published(tmp_path, **{
        "ln_speech.weight": nothing, "encoder.embed.pos_enc.pe": nothing,
        "speech_transformer.embed.pos_enc.pe": nothing, "llama_model._cache.key_cache_0": nothing,
        "llama_model.model.rotary_emb.inv_freq": nothing,
        "llama_model.speech_head.bias": network().speech_head.bias.detach(),
    })  # fmt: skip
    assert same(checkpoint.load(path, SETTINGS), network())


def test_the_last_of_differing_text_tables_wins(tmp_path: Path):
    path = published(tmp_path, **{"lm_head.weight": torch.ones(VOCAB.text_rows, 16)})
    model = checkpoint.load(path, SETTINGS)
    assert model.llm.get_input_embeddings().weight.unique().tolist() == [1.0]


def test_a_prefix_of_a_wrapper_is_taken_off(tmp_path: Path):
    path = published(tmp_path)
    weights = torch.load(path, weights_only=True)
    torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    assert same(checkpoint.load(path, SETTINGS), network())


def test_one_error_lists_all_keys_that_do_not_fit(saved: Path):
    change(saved, **{
        "encoder.after_norm.bias": None, "encoder.extra": torch.zeros(2),
        "speech_head.bias": torch.zeros(9),
    })  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(saved)
    message = str(caught.value)
    assert "3 keys" in message and "\n" not in message
    assert "missing: encoder.after_norm.bias [8]" in message
    assert "unexpected: encoder.extra [2]" in message
    assert "mis-shaped: speech_head.bias [9] there, [65] by the settings" in message


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS_FILE, checkpoint.SETTINGS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoint.load(saved)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere: no such model"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
def test_a_broken_file_is_one_clear_line(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"these are no weights")
    with pytest.raises(CheckpointError, match=r"copy .* again"):
        checkpoint.load(tmp_path / name, SETTINGS)
