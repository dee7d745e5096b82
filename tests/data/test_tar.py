"""Claims about tars: every form gives equal utterances; damage costs what it hits, and is told."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from osum_echat.data import tar as tar_module
from osum_echat.data.sources import RawSource, Shard, TarSource
from tests.data.world import members, plain, raw_rows, read_all, tar_bytes, write_lines, write_shard


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_module, "CACHE", tmp_path / "cache")


def test_the_faults_of_a_combine_list_are_counted(tmp_path):
    rows = raw_rows(tmp_path, "s2t", 3)
    tar = write_shard(tmp_path / "a.tar", rows, tmp_path)
    lines = write_lines(tmp_path / "a.list", [*rows, {**rows[0], "txt": "new"}])
    with lines.open("a") as file:
        file.write('{oops\n[1]\n{"key": "elsewhere", "txt": "x"}\n')
    kept, dropped = read_all(TarSource("a", [Shard(str(tar), str(lines))]))
    assert kept[0].user.reply_text == "new"  # the last line of a key counts
    reasons = sorted(one.reason for one in dropped)
    assert reasons == ["key twice in the list", "not JSON", "not JSON", "not in the tar"]


def test_an_index_is_kept_and_made_again_when_the_tar_changes(tmp_path, monkeypatch):
    rows = raw_rows(tmp_path, "t2t")
    tar = write_shard(tmp_path / "a.tar", rows[:3], tmp_path)
    assert len(TarSource("a", [Shard(str(tar))])) == 3 and (tmp_path / "a.tar.index").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(tar_module, "make_index", None)  # must not be called
        assert len(TarSource("a", [Shard(str(tar))])) == 3
    write_shard(tar, rows, tmp_path)
    os.utime(tar, ns=(1, 1))
    assert len(TarSource("a", [Shard(str(tar))])) == 8


def parts_of(tmp_path: Path, count: int = 6) -> list[list[tuple[str, bytes]]]:
    return [members(row, tmp_path) for row in raw_rows(tmp_path, "s2s", count)]


def read_tar(tmp_path: Path, data: bytes) -> tuple[list[str], list[str]]:
    """Keys delivered and reasons of drops."""
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    kept, dropped = read_all(TarSource("x", [Shard(str(path))]))
    return [one.key for one in kept], [one.reason for one in dropped]


def header_place(data: bytes, name: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


def test_a_packed_tar_that_is_cut_gives_everything_before_the_break(tmp_path):
    packed = gzip.compress(tar_bytes(one for row in parts_of(tmp_path) for one in row))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(packed[: len(packed) // 2])
    kept, dropped = read_all(TarSource("x", [Shard(str(path))]))
    assert 1 <= len(kept) < 6 and len(dropped) == 1


@pytest.mark.parametrize("key", ["/etc/passwd", "../../up", "a/../../b"])
def test_a_name_that_leads_out_is_refused(tmp_path, key):
    every = parts_of(tmp_path, 2)
    every.insert(1, [(f"{key}.{name.split('.')[1]}", data) for name, data in every[0]])
    kept, reasons = read_tar(tmp_path, tar_bytes(one for row in every for one in row))
    assert (kept, reasons) == (["u0", "u1"], ["unsafe name"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_is_not_followed(tmp_path, kind):
    every = parts_of(tmp_path, 3)
    link = tarfile.TarInfo("u1.wav")
    link.type, link.linkname = kind, "/etc/passwd"
    data = tar_bytes(one for row in every for one in row)
    place, after = header_place(data, "u1.wav"), header_place(data, "u1.task")
    kept, reasons = read_tar(tmp_path, data[:place] + link.tobuf() + data[after:])
    assert (kept, reasons) == (["u0", "u2"], ["a link in place of a file"])


def test_long_names_folders_and_dots_are_read(tmp_path):
    row = raw_rows(tmp_path, "t2t", 1)[0]
    for file_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        key = "deep/" + "很长的名字" * 40 + "v1.5"
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=file_format) as tar:
            folder = tarfile.TarInfo("./deep")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, contents in members({**row, "key": key}, tmp_path):
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
        assert read_tar(tmp_path, made.getvalue()) == ([key], [])


def changed(parts: list[tuple[str, bytes]], postfix: str, data: bytes | None) -> Any:
    ending = f".{postfix}"
    if data is None:
        return [one for one in parts if not one[0].endswith(ending)]
    return [(name, data if name.endswith(ending) else old) for name, old in parts]


@pytest.mark.parametrize(("postfix", "contents", "reason"), [
    ("txt", None, "lost .txt"), ("task", None, "lost .task"), ("extra", None, "lost .extra"),
    ("txt", b"a\0\0", "zeros in a text"), ("txt", b"\xff\xfe", "text is not UTF-8"),
    ("extra", b"{oops", "not JSON"), ("extra", b"[1]", "not an object"),
    ("extra", b'{"speech_token": "x"}', "bad record"),
])  # fmt: skip
def test_a_bad_member_costs_its_utterance_only(tmp_path, postfix, contents, reason):
    every = parts_of(tmp_path, 3)
    every[1] = changed(every[1], postfix, contents)
    kept, reasons = read_tar(tmp_path, tar_bytes(one for row in every for one in row))
    assert (kept, reasons) == (["u0", "u2"], [reason])


@pytest.mark.parametrize("form", [gzip.compress, bz2.compress, lzma.compress])
def test_marks_and_packed_tars_are_read(tmp_path, form):
    """A mark at the beginning of a text is no part of it, and three packings are known."""
    every = [[(name, b"\xef\xbb\xbf" + data if name.endswith((".txt", ".task", ".extra")) else data)
              for name, data in row] for row in parts_of(tmp_path, 2)]  # fmt: skip
    path = tmp_path / "x.tar"
    path.write_bytes(form(tar_bytes(one for row in every for one in row)))
    kept, dropped = read_all(TarSource("x", [Shard(str(path))]))
    wanted, _ = read_all(RawSource("s2s", tmp_path / "s2s.list"))
    assert [plain(one) for one in kept] == [plain(one) for one in wanted] and dropped == []


@pytest.mark.parametrize("postfix", ["txt", "extra", "wav", "task"])
def test_rot_under_a_kept_index_is_told(tmp_path, postfix):
    tar = write_shard(tmp_path / "a.tar", raw_rows(tmp_path, "s2s", 3), tmp_path)
    pair = Shard(str(tar), str(write_lines(tmp_path / "a.list", raw_rows(tmp_path, "s2s", 3))))
    for shard in (Shard(str(tar)), pair):
        read_all(TarSource("a", [shard]))
    data, stamp = bytearray(tar.read_bytes()), tar.stat().st_mtime_ns
    data[header_place(bytes(data), f"u1.{postfix}") + 513] ^= 1
    tar.write_bytes(data)
    os.utime(tar, ns=(stamp, stamp))
    for shard in (Shard(str(tar)), pair):
        kept, dropped = read_all(TarSource("a", [shard]))
        assert [one.key for one in kept] == ["u0", "u2"]
        assert [one.reason for one in dropped] == ["tar has changed"]


def test_rot_of_the_lines_of_a_pair_is_told(tmp_path):
    rows = raw_rows(tmp_path, "s2s", 3)
    tar, lines = write_shard(tmp_path / "a.tar", rows, tmp_path), tmp_path / "a.list"
    source = TarSource("a", [Shard(str(tar), str(write_lines(lines, rows)))])
    text, stamp = lines.read_bytes(), lines.stat().st_mtime_ns
    lines.write_bytes(text.replace(b"Well done", b"Hell done"))
    os.utime(lines, ns=(stamp, stamp))
    assert [one.reason for one in read_all(source)[1]] == ["list has changed"]


def test_a_corpus_that_cannot_be_written_beside_is_read(tmp_path, monkeypatch):
    tar = write_shard(tmp_path / "a.tar", raw_rows(tmp_path, "t2t"), tmp_path)
    (tmp_path / "a.tar.index").mkdir()  # nothing can take this name, for root as well
    (tmp_path / "file").touch()
    monkeypatch.setattr(tar_module, "CACHE", tmp_path / "file" / "cache")
    source = TarSource("a", [Shard(str(tar))])
    monkeypatch.setattr(tar_module, "make_index", None)  # must not be called again
    assert len(read_all(source)[0]) == 8


def test_tars_behind_one_another_are_read(tmp_path):
    every = parts_of(tmp_path)
    tars = [tar_bytes(one for row in part for one in row) for part in (every[:2], every[2:])]
    assert read_tar(tmp_path, b"".join(tars)) == ([f"u{one}" for one in range(6)], [])


@pytest.mark.parametrize("data", [b"", bytes(10_240), b"not a tar at all" * 100])
def test_a_file_that_holds_no_tar_is_one_drop(tmp_path, data):
    kept, reasons = read_tar(tmp_path, data)
    assert kept == [] and len(reasons) == 1


COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def rows(folder):
    found = raw_rows(folder, "s2t", COUNT)
    return [{**row, "key": f"utt-{number:04d}-{number * 7919 % 1000:03d}"}
            for number, row in enumerate(found)]  # fmt: skip


def spans(data: bytes) -> dict[str, tuple[int, int]]:
    """The bytes of each key in a tar."""
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            key = info.name.rpartition(".")[0]
            end = info.offset_data + -(-info.size // 512) * 512
            found[key] = (found.get(key, (info.offset, 0))[0], end)
    return found


def damage(data: bytes, rng: random.Random) -> tuple[bytes, tuple[int, int]]:
    """A damaged tar, and the bytes of the whole one that were hit."""
    start = rng.randrange(len(data))
    kind = rng.choice(("cut", "flip", "header", "zero", "noise", "size"))
    if kind == "cut":
        return data[:start], (start, len(data))
    harmed = bytearray(data)
    block = start // 512 * 512
    if kind == "flip":
        harmed[start] ^= rng.randrange(1, 256)
        return bytes(harmed), (start, start + 1)
    if kind in ("header", "size"):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            info = rng.choice(tar.getmembers())
        if kind == "size":
            info.size = rng.choice((2**32, 2**62, 5_000_000))
            harmed[info.offset : info.offset + 512] = info.tobuf(tarfile.GNU_FORMAT)
        else:
            harmed[info.offset + rng.randrange(257)] ^= rng.randrange(1, 256)
        return bytes(harmed), (info.offset, info.offset + 512)
    size = 512 * rng.randrange(1, 8)
    harmed[block : block + size] = bytes(size) if kind == "zero" else rng.randbytes(size)
    return bytes(harmed[: len(data)]), (block, min(block + size, len(data)))


@pytest.mark.parametrize("part", range(10))
def test_damage_to_tars_costs_only_what_it_hits(folder, rows, tmp_path, part):
    whole = tar_bytes(one for row in rows for one in members(row, folder))
    path = tmp_path / "x.tar"
    path.write_bytes(whole)
    source = TarSource("x", [Shard(str(path))])
    wanted = {one.key: plain(one) for one in read_all(source)[0]}
    places = spans(whole)
    for number in range(10):
        harmed, (start, end) = damage(whole, random.Random(100 * part + number))
        path = tmp_path / f"{number}.tar"
        path.write_bytes(harmed)
        source = TarSource("x", [Shard(str(path))])
        kept, dropped = read_all(source)
        hit = [place for place, (first, last) in enumerate(places.values())
               if first < end and last > start]  # fmt: skip
        beside = {min(hit, default=COUNT) - 1}  # what was lost may be a rest of its last member
        safe = {key for place, key in enumerate(places) if place not in {*hit, *beside}}
        given = {one.key: one for one in kept}
        assert safe <= set(given), (part, number)
        assert all(plain(given[key]) == wanted[key] for key in safe & set(given)), (part, number)
        assert len(kept) + len(dropped) == len(source) and all(one.file for one in dropped)


@pytest.mark.parametrize("seed", range(12))
def test_wrong_sizes_give_no_key_what_is_another_ones(folder, rows, tmp_path, seed):
    whole = tar_bytes(one for row in rows for one in members(row, folder))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        every = tar.getmembers()
    path, lines = tmp_path / "x.tar", str(write_lines(tmp_path / "x.list", rows))
    path.write_bytes(whole)
    wanted = {one.key: plain(one) for one in read_all(TarSource("x", [Shard(str(path))]))[0]}
    rng = random.Random(seed)
    for number in range(6):
        place = rng.randrange(len(every))
        info, behind = every[place], rng.choice(every[place:])
        near = rng.randrange(-1_200, 1_200)
        sizes = (0, max(0, info.size + near), max(0, behind.offset - info.offset_data))
        lie = tarfile.TarInfo(info.name)
        lie.size = rng.choice([size for size in sizes if size != info.size] or [info.size + 1])
        harmed = whole[: info.offset] + lie.tobuf() + whole[info.offset + 512 :]
        path = tmp_path / f"{number}.tar"
        path.write_bytes(harmed)
        for shard in (Shard(str(path)), Shard(str(path), lines)):
            kept, dropped = read_all(TarSource("x", [shard]))
            assert all(plain(one) == wanted[one.key] for one in kept), (seed, number, lie.size)
            assert len(kept) >= COUNT - 2 and len(kept) + len(dropped) >= COUNT - 1
