"""Claims about two hundred damaged files: no crash, no hang, and all that is whole is delivered."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from osum_echat.data import tar as tar_module
from osum_echat.data.manifest import open_source
from osum_echat.data.sources import Dropped, Shard, TarSource
from osum_echat.errors import DataError
from osum_echat.records import Utterance
from tests.data.forms import members, plain, raw_rows, read_all, tar_bytes, write_lines

COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    found = raw_rows(folder, "s2t", COUNT)
    return [{**row, "key": f"utt-{number:04d}-{number * 7919 % 1000:03d}"}
            for number, row in enumerate(found)]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "CACHE", tmp_path / "cache")


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
            info.size = rng.choice((2**32, 2**40, 10_000_000))
            harmed[info.offset : info.offset + 512] = info.tobuf(tarfile.GNU_FORMAT)
        else:
            harmed[info.offset + rng.randrange(257)] ^= rng.randrange(1, 256)
        return bytes(harmed), (info.offset, info.offset + 512)
    size = 512 * rng.randrange(1, 8)
    harmed[block : block + size] = bytes(size) if kind == "zero" else rng.randbytes(size)
    return bytes(harmed[: len(data)]), (block, min(block + size, len(data)))


@pytest.mark.parametrize("part", range(10))
def test_damage_to_tars_costs_only_what_it_hits(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path, part: int
) -> None:
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
        assert len(kept) + len(dropped) == len(source)
        assert all(one.file for one in dropped)


def damaged_line(row: dict[str, Any], rng: random.Random) -> bytes:
    line = json.dumps(row).encode()
    kind = rng.choice(("cut", "type", "key", "number", "bytes", "deep", "wav"))
    if kind == "cut":
        return line[: rng.randrange(1, len(line) - 1)]
    if kind == "bytes":
        return b"\xff\xfe" + line
    if kind == "deep":
        return b"[" * 100_000
    changes: dict[str, dict[str, Any]] = {
        "type": {"txt": rng.choice((None, 5, [], {}))}, "key": {"key": rng.choice((None, 7))},
        "number": {"start": 5, "end": rng.choice((1, "x", None))}, "wav": {"wav": 5},
    }  # fmt: skip
    return json.dumps({**row, **changes[kind]}).encode()


@pytest.mark.parametrize("part", range(10))
def test_damage_to_lines_costs_only_those_lines(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path, part: int
) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(tar_bytes(one for row in rows for one in members(row, folder)))
    for number in range(10):
        rng = random.Random(100 * part + number)
        bad = set(rng.sample(range(COUNT), rng.randrange(1, COUNT)))
        lines = [damaged_line(row, rng) if place in bad else json.dumps(row).encode()
                 for place, row in enumerate(rows)]  # fmt: skip
        raw = folder / f"raw_{part}_{number}.list"
        raw.write_bytes(b"\n".join(lines))
        try:
            source = open_source("raw", str(raw))
        except DataError:  # the first line is what tells the form of a list
            assert 0 in bad
            continue
        kept, dropped = read_all(source)
        assert [one.key for one in kept] == [
            row["key"] for place, row in enumerate(rows) if place not in bad
        ]
        assert len(dropped) == len(bad)


def test_damage_to_the_lines_of_a_pair_keeps_the_others(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(tar_bytes(one for row in rows for one in members(row, folder)))
    lines = write_lines(tmp_path / "x.list", rows)
    text = lines.read_bytes().splitlines(keepends=True)
    text[2] = text[2][:40] + b"\n"
    lines.write_bytes(b"".join(text))
    source = TarSource("x", [Shard(str(tar), str(lines))])
    every = [one for unit in range(len(source)) for one in source.read(unit)]
    kept = [one.key for one in every if isinstance(one, Utterance)]
    assert kept == [row["key"] for place, row in enumerate(rows) if place != 2]
    reasons = sorted(one.reason for one in every if isinstance(one, Dropped))
    assert reasons == ["no line in the list", "not JSON"]
