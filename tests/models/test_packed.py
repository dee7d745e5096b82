"""Claims about models in one file: unpacked once, refused in one line."""

import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from osum_echat import EChat, paths
from osum_echat.errors import CheckpointError
from osum_echat.models import pretrained
from tests.evaluation import judge_server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of `tmp_path`."""
    with judge_server.served(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as url:
        yield url.removesuffix("/v1")


def pack(path: Path, folder: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        packed.add(folder, name)
    return path


def test_a_model_at_a_web_address_is_fetched_once(
    tmp_path: Path, model_directory: Path, served: str, cache: Path
) -> None:
    path = pack(tmp_path / "tiny.tar.gz", model_directory, "tiny")
    address = f"{served}/tiny.tar.gz"
    echat = EChat.load(address, device="cpu", speaks=False)
    assert echat.model.directory.parent.parent == cache
    path.unlink()
    assert pretrained.local(address) == echat.model.directory


def test_a_tar_that_has_changed_is_unpacked_anew(tmp_path: Path, model_directory: Path) -> None:
    path = pack(tmp_path / "mine.tgz", model_directory, ".")
    first = pretrained.local(str(path))
    assert pretrained.local(str(path)) == first and (first / paths.WHOLE).is_file()
    pack(path, model_directory, "other")
    assert pretrained.local(str(path)) != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.tar.gz", "cannot be fetched or unpacked .*404"),
        ("torn.tar.gz", "cannot be fetched or unpacked"),
        ("empty.tar", "holds 0 model.yaml"),
        ("model.zip", "ends in .tar, .tar.gz, .tgz"),
    ],
)
def test_what_is_no_packed_model_is_told_and_leaves_nothing(
    tmp_path: Path, model_directory: Path, served: str, cache: Path, name: str, message: str
) -> None:
    whole = pack(tmp_path / "whole.tar.gz", model_directory, "tiny").read_bytes()
    (tmp_path / "torn.tar.gz").write_bytes(whole[:-2000])
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "empty.tar", tmp_path / "empty", "tiny").touch()
    with pytest.raises(CheckpointError, match=message):
        pretrained.local(f"{served}/{name}")
    assert not list(cache.glob("[!.]*"))


@pytest.mark.parametrize(("name", "kind", "message"), [
    ("../evil.txt", tarfile.REGTYPE, "evil.txt lies outside"),
    ("/evil.txt", tarfile.REGTYPE, "evil.txt lies outside"),
    ("tiny/link", tarfile.SYMTYPE, "link is no file"),
    ("tiny/device", tarfile.CHRTYPE, "device is no file"),
])  # fmt: skip
def test_a_tar_writes_files_and_only_into_its_folder(
    tmp_path, cache, name: str, kind: bytes, message: str
):
    with tarfile.open(tmp_path / "evil.tar", "w") as packed:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        packed.addfile(member)
    with pytest.raises(CheckpointError, match=message):
        pretrained.local(str(tmp_path / "evil.tar"))
    assert not list(cache.glob("[!.]*")) and not (tmp_path / "evil.txt").exists()
