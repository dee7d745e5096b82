"""Claims about weights on disk: mapped, split and put together, written whole or not at all."""

import json
from pathlib import Path

import pytest
import torch

from osum_echat.errors import CheckpointError
from osum_echat.models import stored
from osum_echat.models.stored import INDEX_FILE, WEIGHTS_FILE, Stored

WEIGHTS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5).half(), "c": torch.zeros(2, 2)}


def write(directory: Path, shard_bytes: int) -> list[Path]:
    weights = {name: Stored.of(value) for name, value in WEIGHTS.items()}
    return stored.write_safetensors(directory, weights, shard_bytes)


def same(found: dict[str, Stored]) -> bool:
    return set(found) == set(WEIGHTS) and all(
        torch.equal(found[name].read(), value) and found[name].dtype == value.dtype
        for name, value in WEIGHTS.items()
    )


def test_small_weights_are_one_file_and_large_ones_several_with_an_index(tmp_path: Path):
    assert [path.name for path in write(tmp_path / "one", 10**6)] == [WEIGHTS_FILE]
    assert same(stored.safetensors_file(tmp_path / "one" / WEIGHTS_FILE))
    shards = write(tmp_path / "two", 50)
    assert len(shards) == 2 and not (tmp_path / "two" / WEIGHTS_FILE).exists()
    assert same(stored.safetensors_shards(tmp_path / "two" / INDEX_FILE))
    write(tmp_path / "two", 10**6)
    assert not (tmp_path / "two" / INDEX_FILE).exists()


def test_a_file_can_be_written_over_itself_while_it_is_mapped(tmp_path: Path):
    write(tmp_path, 10**6)
    mapped = stored.safetensors_file(tmp_path / WEIGHTS_FILE)
    stored.write_safetensors(tmp_path, mapped)
    assert same(mapped) and same(stored.safetensors_file(tmp_path / WEIGHTS_FILE))


def test_all_names_of_a_weight_share_its_bytes_in_a_torch_file(tmp_path: Path):
    big = Stored.of(torch.randn(1000))
    stored.write_torch_file(tmp_path / "x.pt", [(("a", "b", "c"), big)])
    assert (tmp_path / "x.pt").stat().st_size < 2 * big.nbytes
    found = stored.state_dict_file(tmp_path / "x.pt")
    assert all(torch.equal(one.read(), big.read()) for one in found.values()) and len(found) == 3


def test_a_part_of_a_large_tensor_is_written_alone(tmp_path: Path):
    part = Stored.of(torch.randn(1000)[:10])
    stored.write_torch_file(tmp_path / "x.pt", [(("a",), part)])
    assert (tmp_path / "x.pt").stat().st_size < 3000


def test_a_wrapping_mapping_is_looked_through(tmp_path: Path):
    for key in ("model", "state_dict", "module"):
        torch.save({key: WEIGHTS, "epoch": 3}, tmp_path / "x.pt")
        assert same(stored.state_dict_file(tmp_path / "x.pt"))


def test_an_index_that_names_a_file_elsewhere_or_none_is_refused(tmp_path: Path):
    write(tmp_path, 50)
    index = tmp_path / INDEX_FILE
    raw = json.loads(index.read_text())
    for change, message in (
        ({**raw["weight_map"], "a": "../x.safetensors"}, "do not lie beside it"),
        ({**raw["weight_map"], "a": "gone.safetensors"}, "gone.safetensors: no such file"),
        ({**raw["weight_map"], "d": raw["weight_map"]["a"]}, "its files lack d"),
        ("text", "no index"),
    ):
        index.write_text(json.dumps({"weight_map": change}))
        with pytest.raises(CheckpointError, match=message):
            stored.safetensors_shards(index)
