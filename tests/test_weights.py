"""Claims about weight files: all of it comes back, mapped; a hostile one is refused, unrun."""

import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from osum_echat import weights
from osum_echat.errors import CheckpointError
from osum_echat.token2wav.voice import VoicePrompt, open_onnx
from osum_echat.weights import INDEX_FILE, WEIGHTS_FILE, TarMember

SQUARE = torch.arange(12.0).view(3, 4)
WEIGHTS = {"a": SQUARE, "b": torch.ones(5).half(), "c": torch.zeros(2, 2)}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in WEIGHTS.items()
    )


def test_tensors_are_mapped_and_the_file_never_changes(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"one": SQUARE, "two": SQUARE})
    before = path.read_bytes()
    content = weights.read(path)
    content["one"].add_(1)
    assert torch.equal(content["two"], content["one"])
    assert torch.equal(weights.read(path)["one"], SQUARE) and path.read_bytes() == before


@pytest.mark.parametrize("name", ["flow.pt", "flow.safetensors"])
def test_a_member_of_a_tar_reads_as_its_file(tmp_path: Path, name: str):
    path = tmp_path / name
    if path.suffix == ".pt":
        saved(path, WEIGHTS)
    else:
        weights.write_safetensors_file(path, WEIGHTS)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(path, f"folder/{name}")
    assert same(weights.read(TarMember(tmp_path / "a.tar", f"folder/{name}")))
    with pytest.raises(CheckpointError, match=r"a\.tar: gone\.pt: cannot be read"):
        weights.read(TarMember(tmp_path / "a.tar", "gone.pt"))


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_a_wrapping_mapping_and_a_wrappers_name_are_looked_through(tmp_path: Path, key: str):
    assert same(weights.read(saved(tmp_path / "a.pt", {key: WEIGHTS, "epoch": 3})))
    wrapped = {f"module.{name}": value for name, value in WEIGHTS.items()}
    assert same(weights.read(saved(tmp_path / "a.pt", wrapped)))


class Code:
    """Unpickled in earnest, it would make a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def compressed(path: Path) -> None:
    """A bomb: far more declared than there."""
    with zipfile.ZipFile(path) as archive:
        records = {one.filename: archive.read(one.filename) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data + b"\0" * 50_000_000 if name.endswith("data/0") else data)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7000000000\n"
HOSTILE: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cut short"),
    (Path.unlink, "No such file"), (lambda path: path.write_bytes(b""), "cut short"),
    (lambda path: saved(path, {"a": SQUARE, "b": Code(path.parent / "ran")}), "nothing was run"),
    (lambda path: path.write_bytes(pickle.dumps({"a": Code(path.parent / "ran")})),
     "not written by torch.save"),
    (compressed, "declares"),
    (lambda path: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path),
     "declares"),        # a program
    (lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False),
     "not written by torch.save of 1.6"),
    (lambda path: saved(path, [SQUARE]), "holds no mapping"),
    (lambda path: saved(path, {"epoch": 7}), "holds no mapping"),
    (lambda path: saved(path, {"a": SQUARE.to_sparse()}), "holds no mapping|not readable"),
    (lambda path: path.write_text(POINTER), "git lfs pull"),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("damage", "message"), HOSTILE)
def test_a_broken_file_is_one_clear_error_and_nothing_in_it_is_run(tmp_path, damage, message):
    path = saved(tmp_path / "a.pt", WEIGHTS)
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        weights.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [weights.read, VoicePrompt.load, open_onnx])
def test_a_pointer_in_the_place_of_any_file_is_told(tmp_path: Path, read: Callable[[Path], object]):
    (tmp_path / "a.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100])
def test_a_safetensors_file_cut_short_is_one_clear_error(tmp_path: Path, keep: int):
    path = tmp_path / WEIGHTS_FILE
    weights.write_safetensors_file(path, WEIGHTS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cannot be read"):
        weights.read(path)


def test_large_weights_are_several_files_and_all_names_of_a_weight_share_its_bytes(tmp_path: Path):
    written = weights.write_safetensors(tmp_path / "one", WEIGHTS)
    assert [path.name for path in written] == [WEIGHTS_FILE] and same(weights.read(written[0]))
    assert len(weights.write_safetensors(tmp_path / "two", WEIGHTS, 50)) == 2
    assert not (tmp_path / "two" / WEIGHTS_FILE).exists()
    assert same(weights.read(tmp_path / "two" / INDEX_FILE))
    weights.write_safetensors(tmp_path / "two", WEIGHTS)
    assert not (tmp_path / "two" / INDEX_FILE).exists()
    path, big = tmp_path / "x.pt", torch.randn(1000)
    weights.write_torch_file(path, [(("a", "b", "c"), big), (("d",), big[:10])])
    assert path.stat().st_size < 1.8 * big.nbytes
    found = weights.read(path)
    assert all(torch.equal(found[name], big) for name in "abc") and len(found["d"]) == 10


def test_a_file_can_be_written_over_itself_while_it_is_mapped(tmp_path: Path):
    weights.write_safetensors(tmp_path, WEIGHTS)
    mapped = weights.read(tmp_path / WEIGHTS_FILE)
    weights.write_safetensors(tmp_path, mapped)
    assert same(mapped) and same(weights.read(tmp_path / WEIGHTS_FILE))
    os.umask(mask := os.umask(0))
    assert (tmp_path / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_index_that_names_a_file_elsewhere_or_none_is_refused(tmp_path: Path):
    weights.write_safetensors(tmp_path, WEIGHTS, 50)
    index = tmp_path / INDEX_FILE
    raw = json.loads(index.read_text())
    for change, message in (
        ({**raw["weight_map"], "a": "../x.safetensors"}, "do not lie beside it"),
        ({**raw["weight_map"], "a": "gone.safetensors"}, r"gone\.safetensors: .*No such file"),
        ({**raw["weight_map"], "d": raw["weight_map"]["a"]}, "its files lack d"),
        ("text", "no index"),
    ):
        index.write_text(json.dumps({"weight_map": change}))
        with pytest.raises(CheckpointError, match=message):
            weights.read(index)
