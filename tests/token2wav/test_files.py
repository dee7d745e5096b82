"""Claims about where files lie: a directory or a tar, whose members are only ever read in place."""

import io
import tarfile
from pathlib import Path

import pytest

from osum_echat.errors import CheckpointError
from osum_echat.token2wav.model import find_files, first_of
from osum_echat.weights import opened

NAMES = ("flow.pt", "hift.pt", "token2wav.yaml")


def content(file) -> bytes:
    with opened(file) as stream:
        return stream.read()


def write(path: Path, members: dict[str, bytes], **more: bytes) -> Path:
    """A tar of these members; more: further ones by their type."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in more.items():
            member = tarfile.TarInfo(f"{name}.pt")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def test_a_directory_and_its_tar_hold_the_same(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*NAMES, "llm.pt"):
        (folder / name).write_bytes(name.encode())
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(folder, "CosyVoice-300M-25Hz")
    for source in (folder, tmp_path / "model.tar"):
        files = find_files(source)
        assert set(files) == set(NAMES)
        assert all(content(file) == name.encode() for name, file in files.items())


def test_hostile_names_are_only_names(tmp_path: Path):
    path = write(tmp_path / "a.tar", {"../../../flow.pt": b"1", "/etc/hift.pt": b"2"})
    files = find_files(path)
    assert (content(files["flow.pt"]), content(files["hift.pt"])) == (b"1", b"2")
    assert {one.name for one in tmp_path.iterdir()} == {"a.tar"}


def test_links_and_devices_are_passed_over(tmp_path: Path):
    path = write(tmp_path / "a.tar", {}, flow=tarfile.SYMTYPE, hift=tarfile.CHRTYPE)
    assert find_files(path) == {}


def test_a_name_twice_is_refused(tmp_path: Path):
    path = write(tmp_path / "a.tar", {"a/flow.pt": b"1", "b/flow.pt": b"2"})
    with pytest.raises(CheckpointError, match=r"a\.tar: .*holds flow\.pt twice"):
        find_files(path)


@pytest.mark.parametrize("kept", [700, 3000])
def test_a_tar_cut_short_is_refused(tmp_path: Path, kept: int):
    path = write(tmp_path / "a.tar", {"flow.pt": b"1" * 5000, "hift.pt": b"2"})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"a\.tar: .*(cut short|unexpected end)"):
        find_files(path)


def test_a_compressed_tar_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(__file__, "flow.pt")
    with pytest.raises(CheckpointError, match="not a readable, uncompressed tar"):
        find_files(tmp_path / "a.tar.gz")


def test_a_header_that_asks_for_much_is_refused(tmp_path: Path):
    path = tmp_path / "a.tar"
    long_name = tarfile.TarInfo("flow.pt")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path.write_bytes(long_name.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(CheckpointError, match="not a readable"):
        find_files(path)


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"gone: no such file or directory; give a token2wav"):
        find_files(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"holds no flow\.pt or flow\.safetensors"):
        first_of({}, ("flow.pt", "flow.safetensors"), tmp_path)
