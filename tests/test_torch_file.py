"""Claims about .pt files: all of a content comes back, mapped; a hostile one is refused, unrun."""

import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from osum_echat import torch_file
from osum_echat.errors import CheckpointError

SQUARE = torch.arange(12.0).view(3, 4)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def repacked(path: Path, name: str, data: bytes | None = None, how: int = 0) -> Path:
    """The zip written again, one record with other bytes or another compression."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for key, value in records.items():
            archive.writestr(key, data if data is not None and key.endswith(name) else value)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        torch_file.load(path)
    return str(caught.value)


def test_every_tensor_comes_back_as_torch_reads_it(tmp_path: Path):
    content = {
        "square": SQUARE, "turned": SQUARE.t()[1:], "half": SQUARE.bfloat16(), "none": SQUARE[:0],
        "alone": torch.tensor(3), "parameter": torch.nn.Parameter(SQUARE * 2), "epoch": 7,
        "inner": {"list": [SQUARE.long(), "words"]},
    }  # fmt: skip
    path = saved(tmp_path / "a.pt", content)
    ours, theirs = torch_file.load(path), torch.load(path, weights_only=True)
    for key in ("square", "turned", "half", "none", "alone", "parameter"):
        assert torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype
    assert torch.equal(ours["inner"]["list"][0], SQUARE.long())
    assert (ours["epoch"], ours["inner"]["list"][1]) == (7, "words")


def test_tensors_that_share_memory_still_do_and_the_file_never_changes(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"one": SQUARE, "two": SQUARE})
    before = path.read_bytes()
    content = torch_file.load(path)
    content["one"].add_(1)
    assert torch.equal(torch_file.load(path)["one"], SQUARE)
    assert path.read_bytes() == before


def test_a_stretch_of_a_file_is_read_as_a_file(tmp_path: Path):
    data = saved(tmp_path / "a.pt", {"square": SQUARE}).read_bytes()
    whole = tmp_path / "whole"
    whole.write_bytes(b"x" * 5120 + data + b"y" * 100)
    assert torch.equal(torch_file.load(whole, 5120, len(data))["square"], SQUARE)


@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.98])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: float):
    path = saved(tmp_path / "a.pt", {"square": torch.zeros(500)})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    assert "cut short" in refused(path)


def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path: Path):
    mark = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    path = saved(tmp_path / "a.pt", {"square": SQUARE, "code": Code()})
    assert "nothing was run" in refused(path)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Code()))
    assert "not written by torch.save" in refused(bare)
    assert not mark.exists()


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"zeros": torch.zeros(2_000_000)})
    assert "declares" in refused(repacked(path, "", how=zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000


def test_a_tensor_larger_than_its_record_is_refused(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"square": SQUARE, "more": torch.zeros(64)})
    short = repacked(path, "data/0", b"\0" * 8)
    assert "a tensor of 48 bytes, of which it holds 8" in refused(short)


def test_a_tensor_repeated_without_end_is_refused(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"one": torch.zeros(1).expand(10**9)})
    assert "declares a tensor of 4000000000 bytes" in refused(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path):
    assert "sparse" in refused(saved(tmp_path / "a.pt", {"a": SQUARE.to_sparse()}))
    old = tmp_path / "old.pt"
    torch.save({"square": SQUARE}, old, _use_new_zipfile_serialization=False)
    assert "not written by torch.save of 1.6" in refused(old)
    program = tmp_path / "program.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), program)
    assert str(program) in refused(program)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path):
    path = tmp_path / "a.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in refused(path)
    assert "No such file" in refused(tmp_path / "gone.pt")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, seed: int):
    path = saved(tmp_path / "a.pt", OrderedDict(a=SQUARE, b=torch.zeros(50)))
    generator, data = torch.Generator().manual_seed(seed), bytearray(path.read_bytes())
    outcomes = Counter()
    for _ in range(25):
        wrong = bytearray(data)
        for place in torch.randint(len(data), (6,), generator=generator).tolist():
            wrong[place] ^= 0x41
        path.write_bytes(wrong)
        try:
            content = torch_file.load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
        else:
            tensors = [one for one in content.values() if isinstance(one, torch.Tensor)]
            assert sum(one.nbytes for one in tensors) <= len(data)
            outcomes["read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) >= 1, outcomes


def test_a_stretch_reads_like_a_file():
    part = torch_file.Stretch(io.BytesIO(b"0123456789"), 2, 5)
    assert part.read(2) == b"23" and part.tell() == 2
    assert part.seek(-1, io.SEEK_END) == 4 and part.read(9) == b"6" and part.read(9) == b""
