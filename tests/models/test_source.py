"""Claims about sources: what lies where is found, and what is not there is named."""

import shutil
from pathlib import Path

import pytest
import torch

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.pretrained import PUBLISHED_SETTINGS
from tests.tiny_network import SETTINGS, network

KEYS = ("encoder.after_norm.bias", "speech_head.weight")


def same(one: torch.nn.Module) -> bool:
    other = network()
    return all(torch.equal(one.state_dict()[key], other.state_dict()[key]) for key in KEYS)


def test_shards_are_found_by_their_index(tmp_path: Path):
    checkpoint.save(tmp_path, network(), shard_bytes=5000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert pretrained.find(tmp_path).weights.name == "model.safetensors.index.json"
    assert same(checkpoint.load(tmp_path))


def test_a_published_file_takes_the_settings_beside_it_or_those_given(tmp_path: Path):
    checkpoint.save_published(tmp_path / "one.pt", network())
    checkpoint.write_settings(tmp_path, SETTINGS)
    shutil.copyfile(tmp_path / "model.yaml", tmp_path / "other.yaml")
    assert pretrained.find(tmp_path).weights == tmp_path / "one.pt"
    assert pretrained.find(tmp_path / "one.pt").settings == tmp_path / "model.yaml"
    given = pretrained.find(tmp_path / "one.pt", tmp_path / "other.yaml")
    assert given.settings == tmp_path / "other.yaml" and given.home == tmp_path
    assert same(checkpoint.load(tmp_path / "one.pt"))
    with pytest.raises(CheckpointError, match=r"gone\.yaml: no such settings"):
        pretrained.find(tmp_path / "one.pt", tmp_path / "gone.yaml")


def test_a_published_file_alone_takes_the_published_settings(tmp_path: Path):
    checkpoint.save_published(tmp_path / "one.pt", network())
    assert pretrained.find(tmp_path / "one.pt").settings == PUBLISHED_SETTINGS
    with pytest.raises(CheckpointError, match=r"speech_head\.bias \[65\] there, \[4097\] by"):
        checkpoint.load(tmp_path / "one.pt")


def test_of_several_published_files_one_must_be_named(tmp_path: Path):
    for name in ("language_think_final.pt", "tag_think_final.pt"):
        checkpoint.save_published(tmp_path / name, network())
    with pytest.raises(CheckpointError, match=r"one of language_think_final\.pt, tag_think"):
        pretrained.find(tmp_path)


def test_a_deepspeed_directory_is_a_source(tmp_path: Path):
    """As upstream's training leaves it: states in a step's folder, settings above."""
    checkpoint.save_published(tmp_path / "one.pt", network())
    folder = tmp_path / "run" / "step_9"
    folder.mkdir(parents=True)
    weights = torch.load(tmp_path / "one.pt", weights_only=True)
    torch.save({"module": weights, "buffer_names": []}, folder / "mp_rank_00_model_states.pt")
    (tmp_path / "run" / "latest").write_text("step_9")
    checkpoint.write_settings(tmp_path / "run", SETTINGS)
    for place in (tmp_path / "run", folder):
        assert pretrained.find(place).settings == tmp_path / "run" / "model.yaml"
        assert same(checkpoint.load(place))


def test_the_tokenizer_is_looked_for_beside_and_where_the_settings_say(tmp_path: Path):
    checkpoint.save_published(tmp_path / "one.pt", network())
    checkpoint.write_settings(tmp_path, SETTINGS, {"tokenizer": "far/away"})
    found = pretrained.find(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer .*far/away.*give --tokenizer DIR"):
        found.tokenizer()
    for place in ("far/away", "llm"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "tokenizer.json").write_text("{}")
        assert found.tokenizer() == tmp_path / place


def test_an_llm_alone_is_no_model_and_the_error_says_what_it_is_good_for(tmp_path: Path):
    checkpoint.save(tmp_path, network())
    (tmp_path / "model.yaml").rename(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"an LLM alone.*init_llm"):
        pretrained.find(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"notes\.txt: no file of weights"):
        checkpoint.load(tmp_path / "notes.txt", SETTINGS)
