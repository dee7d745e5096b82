"""Claims about combine lists: the words of every tar, however many, with each one's own task."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from osum_echat.errors import OsumError
from osum_echat.records import Utterance
from tests.common_utils.reading import combine, read_all, rows_of, shards, write_raw
from tests.data.world import write_world


@pytest.fixture
def shard_list(tmp_path: Path) -> Path:
    raw = write_world(tmp_path / "raw")["s2s_think"]
    shards(raw, tmp_path / "shard", "--per-tar", "3")
    return tmp_path / "shard/shards_list.txt"


def test_the_files_are_those_that_users_know(shard_list: Path, tmp_path: Path):
    combine(shard_list, tmp_path / "combine")
    folder = tmp_path / "combine"
    stems = [f"shard_00000000{number}" for number in range(3)]
    assert (folder / "combines_list.txt").read_text().split() == [f"{one}.list" for one in stems]
    assert (folder / "combines_tar_root.txt").read_text() == "../shard\n"
    every = [row for stem in stems for row in rows_of(folder / f"{stem}.list")]
    assert rows_of(folder / "data.list") == every and len(every) == 8
    assert {"key", "txt", "wav", "extra", "tar_path_key", "task"} == set(every[0])
    assert {row["wav"] for row in every} == {"only-meta"}
    assert [row["tar_path_key"] for row in every] == [stems[number // 3] for number in range(8)]


def test_each_keeps_its_task_unless_one_is_given_for_all(shard_list: Path, tmp_path: Path):
    combine(shard_list, tmp_path / "own")
    combine(shard_list, tmp_path / "given", "--task", "<S2TCHAT>")
    tasks = [{row["task"] for row in rows_of(tmp_path / name / "data.list")}
             for name in ("own", "given")]  # fmt: skip
    assert tasks == [{"<S2TCHAT> <TEXT2TOKEN> <THINK>"}, {"<S2TCHAT>"}]


def test_an_edited_line_changes_the_corpus_without_a_new_tar(shard_list: Path, tmp_path: Path):
    combine(shard_list, tmp_path / "combine")
    path = tmp_path / "combine/shard_000000000.list"
    first, second, _ = rows_of(path)
    path.write_text(json.dumps(first | {"txt": "New words."}) + "\n" + json.dumps(second))
    found = [one for one in read_all(tmp_path / "combine/combines_list.txt")
             if isinstance(one, Utterance)]  # fmt: skip
    assert [one.key for one in found] == [f"u{number}" for number in (0, 1, 3, 4, 5, 6, 7)]
    assert found[0].user.reply_text == "New words."


def test_a_tar_of_more_than_a_thousand_is_read_whole(tmp_path: Path):
    rows = [{"key": f"k{number}", "txt": "x", "task": "<TEXT2TEXT>"} for number in range(2_500)]
    shards(write_raw(tmp_path, rows), tmp_path / "shard", "--per-tar", "5000")
    assert combine(tmp_path / "shard/shards_list.txt", tmp_path / "combine").written == 2_500


def test_a_damaged_tar_yields_what_is_sound(shard_list: Path, tmp_path: Path):
    tar = tmp_path / "shard/shard_000000000.tar"
    data = tar.read_bytes()
    with tarfile.open(tar) as archive:
        cut = archive.getmember("u2.wav").offset_data
    tar.write_bytes(data[: cut + 100])
    report = combine(shard_list, tmp_path / "combine")
    assert report.written == 7 and sum(report.dropped.values()) == 1


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [("extra", b"{oops", "bad record"), ("extra", b"[]", "bad record"),
     ("extra", b'{"age": "\\ud800"}', "bad record"),
     ("txt", b"\xff\xfe", "bad record"), ("task", b"none", None)],
)  # fmt: skip
def test_a_member_that_cannot_be_read_leaves_its_utterance_out(
    tmp_path: Path, kind: str, data: bytes, reason: str | None
):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for key in ("a", "b"):
            for name, held in {"txt": b"x", "task": b"<TEXT2TEXT>", "extra": b"{}"}.items():
                add(archive, f"{key}.{name}", data if (key, name) == ("a", kind) else held)
    report = combine(tmp_path / "a.tar", tmp_path / "combine")
    assert report.dropped == ({reason: 1} if reason else {})
    assert rows_of(tmp_path / "combine/a.list")[-1]["key"] == "b"


def test_hostile_names_are_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for key in ("/etc/passwd", "../../up", "good"):
            for kind in ("txt", "task", "extra"):
                add(archive, f"{key}.{kind}", b"{}")
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    report = combine(tmp_path / "a.tar", tmp_path / "combine")
    assert report.written == 1 and sum(report.dropped.values()) == 3
    assert [row["key"] for row in rows_of(tmp_path / "combine/data.list")] == ["good"]
    assert {one.name for one in tmp_path.iterdir()} == {"a.tar", "combine"}


def test_lists_that_name_no_plain_tars_are_an_error(tmp_path: Path, shard_list: Path):
    for line, message in {"gone.tar": "no such file", "words": "names no tar"}.items():
        path = shard_list.with_name("bad.txt")
        path.write_text(line + "\n")
        with pytest.raises(OsumError, match=message):
            combine(path, tmp_path / "combine")
    shard_list.write_text("-|shard_000000000.tar\n")
    assert combine(shard_list, tmp_path / "combine").written == 3
