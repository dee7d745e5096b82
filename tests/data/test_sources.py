"""Claims about raw lists, manifests, lists of tars, folders and URLs."""

import io
import json
from pathlib import Path

import fsspec
import pytest

from osum_echat.data import tar as tar_module
from osum_echat.data.manifest import OfKind, open_source, read_manifest
from osum_echat.data.sources import RawSource
from osum_echat.errors import ConfigError, DataError
from osum_echat.files import Files
from tests.data.world import plain, raw_rows, read_all, write_lines, write_shard


def test_texts_of_the_field_cost_at_most_their_own_line(tmp_path):
    good = [json.dumps({"key": f"k{n}", "txt": text}, ensure_ascii=False).encode()
            for n, text in enumerate(("a\u2028b", "c\u0085d\x0be", "\U0001f600"))]  # fmt: skip
    lines = [b"\xef\xbb\xbf" + good[0] + b"\r", b'{"key": "half", "txt": "\\ud83d"}', good[1], b"",
             b'{"key": "latin", "txt": "caf\xe9"}', b'{"key": "pair", "txt": "\\ud83d\\ude00"}',
             b'{"key": "url", "txt": "x", "wav": "https://host/a.wav"}', good[2],
             b"{oops", b"[1]", b'{"key": "a"}', b'{"key": "a", "txt": 5}']  # fmt: skip
    (tmp_path / "a.list").write_bytes(b"\n".join(lines))
    kept, dropped = read_all(RawSource("a", tmp_path / "a.list"))
    assert [(one.key, one.user.reply_text) for one in kept] == [
        ("k0", "a\u2028b"), ("k1", "c\u0085d\x0be"), ("pair", "\U0001f600"), ("k2", "\U0001f600")
    ]  # fmt: skip
    told = [(one.reason, one.detail.split("a.list ")[1].split(":")[0]) for one in dropped]
    assert told == [
        ("text is not Unicode", "(record 2, line 2)"), ("text is not UTF-8", "(record 4, line 5)"),
        ("audio cannot be fetched", "(record 6, line 7)"), ("not JSON", "(record 8, line 9)"),
        ("not an object", "(record 9, line 10)"), ("bad record", "(record 10, line 11)"),
        ("bad record", "(record 11, line 12)"),
    ]  # fmt: skip
    assert "URLs are not read here" in dropped[2].detail


def test_a_line_that_names_no_tar_costs_itself_alone(folder):
    place = folder / "shards_list.txt"
    place.write_bytes(b"\xef\xbb\xbftars/part_0.tar\n\xff.tar\ns3://far/a.tar\ntars/part_1.tar\r\n")
    kept, dropped = read_all(open_source("a", str(place)))
    assert len(kept) == 8 and [one.reason for one in dropped] == ["missing tar"] * 2
    with pytest.raises(ConfigError, match="URLs are not read here"):
        open_source("a", "s3://far/a.tar")
    assert "line 2: byte 1 is not UTF-8" in dropped[0].detail
    assert "line 3: s3://far/a.tar: URLs are not read here" in dropped[1].detail


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A raw list, two tars and their combine lists."""
    monkeypatch.setattr(tar_module, "CACHE", tmp_path / "cache")
    rows = raw_rows(tmp_path, "s2s")
    for number in (0, 1):
        part = rows[4 * number : 4 * number + 4]
        (tmp_path / "tars").mkdir(exist_ok=True)
        write_shard(tmp_path / "tars" / f"part_{number}.tar", part, tmp_path)
        write_lines(tmp_path / f"part_{number}.list", part)
    return tmp_path


def listed(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("name", "text"), [
    ("bare.txt", "tars/part_0.tar\n\ntars/part_1.tar\n"),
    ("upstream.txt", "-|tars/part_0.tar\n-|tars/part_1.tar\n"),
    ("pairs.txt", "part_0.list|tars/part_0.tar\npart_1.list|tars/part_1.tar\n"),
    ("mixed.txt", "part_0.list|tars/part_0.tar\n-|tars/part_1.tar\n"),
    ("combines_list.txt", "part_0.list\npart_1.list\n"), ("s2s.list", None), ("tars", None),
])  # fmt: skip
def test_every_form_of_list_gives_the_same_utterances(folder, name, text):
    (folder / "combines_tar_root.txt").write_text("tars\n")
    if text is not None:
        listed(folder / name, text)
    kept, dropped = read_all(open_source("a", str(folder / name)))
    wanted, _ = read_all(open_source("a", str(folder / "s2s.list")))
    assert [plain(one) for one in kept] == [plain(one) for one in wanted] and dropped == []


@pytest.mark.parametrize("name", ["shards_list.txt", "data.list"])
def test_a_folder_is_read_by_its_usual_list(folder, name):
    text = (folder / "s2s.list").read_text() if name == "data.list" else "tars/part_0.tar\n"
    listed(folder / name, text)
    assert len(open_source("a", str(folder))) == (8 if name == "data.list" else 4)


def test_a_manifest_names_lists_with_weights(folder):
    place = listed(
        folder / "data_s2s.yaml",
        "one: {path: s2s.list, weight: 2.5, tar_num: 7}\n"
        "two: {path: tars, weight: 0.3}\nthree: {path: /far/list}\nfour: {path: x, weight: 0}\n",
    )
    found = [(one.name, one.path, one.weight) for one in read_manifest(place)]
    assert found == [
        ("one", str(folder / "s2s.list"), 2.0),  # above 1 a weight is whole, as upstream has it
        ("two", str(folder / "tars"), 0.3),
        ("three", "/far/list", 1.0),
        ("four", str(folder / "x"), 0.0),
    ]


@pytest.mark.parametrize(("text", "message"),
                         [("[]", "a mapping of names"), ("a: {weight: 1}", "a: `path` is missing"),
                          ("a: {path: x, weight: .nan}", "need 0 or more"),
                          ("a: {path: x, weigth: 2}", "did you mean 'weight'")])  # fmt: skip
def test_a_wrong_manifest_is_told(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_manifest(listed(tmp_path / "m.yaml", text))


@pytest.mark.parametrize(("name", "text", "message"), [
    ("gone.txt", None, "no such file"), ("a.txt", "", "it is empty"),
    ("a.txt", "a.wav\n", "names no tar"), ("empty", None, "a folder without"),
])  # fmt: skip
def test_a_list_that_holds_nothing_is_told(tmp_path, name, text, message):
    (tmp_path / "empty").mkdir()
    if text is not None:
        listed(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        open_source("a", str(tmp_path / name))


def test_a_kind_takes_only_its_own_tasks(folder):
    source = open_source("a", str(folder / "s2s.list"))
    assert len(read_all(OfKind(source, "s2s"))[0]) == 8
    kept, dropped = read_all(OfKind(source, "t2t"))
    assert kept == [] and {one.reason for one in dropped} == {"task of another kind"}
    with pytest.raises(ConfigError, match="'x2y' is not one of s2t"):
        OfKind(source, "x2y")


def test_allowed_urls_are_read_like_files(folder):
    memory = fsspec.filesystem("memory")
    for name in ("part_0.tar", "part_1.tar"):
        memory.pipe(f"/tars/{name}", (folder / "tars" / name).read_bytes())
    memory.pipe("/tars/shards_list.txt", b"part_0.tar\npart_1.tar\n")
    rows = [json.loads(line) for line in (folder / "s2s.list").read_text().splitlines()]
    for row in rows:
        memory.pipe(f"/{row['wav']}", (folder / row["wav"]).read_bytes())
    memory.pipe("/data.list", "".join(json.dumps(row) + "\n" for row in rows).encode())
    wanted = [plain(one) for one in read_all(open_source("a", str(folder / "s2s.list")))[0]]
    for place in ("memory://tars/shards_list.txt", "memory://tars", "memory://data.list"):
        kept, dropped = read_all(open_source("a", place, files=Files(("memory",))))
        assert ([plain(one) for one in kept], dropped) == (wanted, [])


class Failing:
    """A file on a server that goes away after so many bytes; its client has errors of its own."""

    def __init__(self, data: bytes, lasts: int) -> None:
        self.held, self.lasts = io.BytesIO(data), lasts
        self.seek, self.tell, self.close = self.held.seek, self.held.tell, self.held.close

    def read(self, size: int) -> bytes:
        if self.held.tell() + size > self.lasts:
            raise RuntimeError("the line is dead")
        return self.held.read(size)


def test_a_server_that_fails_costs_units_and_leaves_no_wrong_index(folder, tmp_path, monkeypatch):
    data = (folder / "tars" / "part_0.tar").read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe("/own/a.tar", data)
    whole = memory.open
    monkeypatch.setattr(memory, "open", lambda *_: Failing(data, len(data) // 2))
    kept, dropped = read_all(open_source("a", "memory://own/a.tar", files=Files(("memory",))))
    assert (kept, [one.reason for one in dropped]) == ([], ["missing tar"])
    assert "RuntimeError: the line is dead" in dropped[0].detail and not tar_module.CACHE.exists()
    monkeypatch.setattr(memory, "open", whole)
    source = open_source("a", "memory://own/a.tar", files=Files(("memory",)))
    monkeypatch.setattr(memory, "open", lambda *_: Failing(data, len(data) // 2))
    _, dropped = read_all(source)
    assert {one.reason for one in dropped} == {"tar cannot be read"}
