"""Claims about broken and hostile files: each is one clear error, and nothing in it is run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from osum_echat import EChat
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from tests.tiny_network import SETTINGS, network


class Code:
    """Unpickled in earnest, it would make a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    checkpoint.save_published(tmp_path / "model.pt", network())
    return tmp_path / "model.pt"


def resave(path: Path, change: Callable[[dict], object]) -> None:
    raw = torch.load(path, weights_only=True)
    torch.save(change(raw) or raw, path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_in_the_middle(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:5000] + data[9000:])


def without_bytes(path: Path) -> None:
    path.write_bytes(b"")


def with_code(path: Path) -> None:
    resave(path, lambda raw: raw.update(extra=Code(path.parent / "ran")))


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"encoder.after_norm.bias": Code(path.parent / "ran")}))


def compressed(path: Path) -> None:
    """A bomb: far more declared than there."""
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one.filename) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + b"\0" * 50_000_000 if name.endswith("data/0") else data)


def unfolding(path: Path) -> None:
    """One number that says it is two terabytes."""
    huge = torch.zeros(1).as_strided((1_000_000, 500_000), (0, 0))
    resave(path, lambda raw: raw.update({"encoder.after_norm.bias": huge}))


def wrong_shape(path: Path) -> None:
    resave(path, lambda raw: raw.update({"speech_head.bias": torch.zeros(9)}))


def missing_layer(path: Path) -> None:
    resave(path, lambda raw: {key: one for key, one in raw.items() if ".layers.1." not in key})


def not_a_number(path: Path) -> None:
    bad = torch.full((8,), torch.nan)
    resave(path, lambda raw: raw.update({"encoder.after_norm.bias": bad}))


def infinite(path: Path) -> None:
    resave(path, lambda raw: raw["speech_head.weight"].__setitem__((3, 2), -torch.inf))


def whole_numbers(path: Path) -> None:
    resave(path, lambda raw: raw.update({"encoder.after_norm.bias": torch.zeros(8).int()}))


def a_list(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def with_an_epoch(path: Path) -> None:
    resave(path, lambda raw: raw.update(epoch=7))


def sparse(path: Path) -> None:
    resave(path, lambda raw: raw.update({"speech_head.bias": torch.zeros(65).to_sparse()}))


def another_model(path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)}, path)


def pointer_of_lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7000000000\n")


BROKEN = (
    (cut_short, "copy it again"), (cut_in_the_middle, "copy it again|not readable as weights"),
    (without_bytes, "copy it again"), (with_code, "nothing was run"),
    (plain_pickle, "not written by torch.save"), (compressed, "declares"),
    (unfolding, "declares a tensor|mis-shaped"), (wrong_shape, r"\[9\] there, \[65\] by"),
    (missing_layer, r"missing: llm\.model\.layers\.1\.mlp\.gate_proj"),
    (not_a_number, r"not finite .*encoder\.after_norm\.bias \[8\]"),
    (infinite, r"not finite .*speech_head\.weight"), (whole_numbers, "of the wrong type"),
    (a_list, "holds no mapping"), (with_an_epoch, r"epoch \(int\)"), (sparse, "sparse|weights"),
    (another_model, r"unexpected: conv\.bias \[3\]"), (pointer_of_lfs, "Git LFS"),
)  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[one.__name__ for one, _ in BROKEN])
def test_a_broken_file_is_one_clear_error(good: Path, damage, message: str):
    damage(good)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(good, SETTINGS)
    assert str(good) in str(caught.value) and "\n" not in str(caught.value)
    assert not (good.parent / "ran").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 4000])
def test_a_safetensors_file_cut_short_is_one_clear_error(tmp_path: Path, keep: int):
    checkpoint.save(tmp_path, network())
    path = tmp_path / checkpoint.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path)


def test_settings_of_another_model_are_one_error_with_both_shapes(tmp_path: Path):
    checkpoint.save(tmp_path, network())
    path = tmp_path / checkpoint.SETTINGS_FILE
    raw = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**raw, "speech_codes": 50}))
    with pytest.raises(CheckpointError, match=r"speech_head\.bias \[65\] there, \[51\] by"):
        checkpoint.load(tmp_path)


def test_a_tokenizer_of_another_llm_is_refused(model_directory: Path, tmp_path: Path):
    raw = yaml.safe_load((model_directory / "model.yaml").read_text())
    for path in model_directory.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    llm = raw["llm"] | {"eos_token_id": 151645}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(raw | {"llm": llm}))
    with pytest.raises(CheckpointError, match=r"not this model's tokenizer: .* with 151645"):
        EChat.load(tmp_path, device="cpu", speaks=False)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        EChat.load(tmp_path, device="cpu", speaks=False)


def test_a_tied_table_of_nothing_but_nan_is_told_once(tmp_path: Path):
    checkpoint.save(tmp_path, network())
    path = tmp_path / checkpoint.WEIGHTS_FILE
    weights = load_file(path)
    weights["llm.model.embed_tokens.weight"][:] = torch.nan
    save_file({name: one.clone() for name, one in weights.items()}, path)
    with pytest.raises(CheckpointError, match="1 weights are not finite"):
        checkpoint.load(tmp_path)
