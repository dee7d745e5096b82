"""Claims about local Hugging Face data sets, as the `datasets` library lays them out."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common_utils import make_raw_from_hf
from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.records import Utterance
from tests.common_utils.reading import read_all, rows_of, run_tool, write_noise

convert = partial(run_tool, make_raw_from_hf)


def write_parquet(
    path: Path, rows: list[dict[str, Any]], classes: dict[str, list[str]] | None = None
) -> Path:
    """A file as `to_parquet` writes it, of row groups of two."""
    features = {name: {"names": names, "_type": "ClassLabel"}
                for name, names in (classes or {}).items()}  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    told = {"info": {"features": features | {"audio": {"_type": "Audio"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


def sound(folder: Path, name: str) -> dict[str, Any]:
    return {"bytes": write_noise(folder / name).read_bytes(), "path": name}


def test_parquet_gives_its_audio_to_files_and_the_rest_to_the_list(tmp_path: Path):
    rows = [
        {"audio": sound(tmp_path / "src", f"{number}.{'flac' if number % 2 else 'wav'}"),
         "sentence": f"words {number}", "client_id": "anna", "locale": "en", "age": "OLD",
         "gender": number % 2, "score": number, "path": None}
        for number in range(5)
    ]  # fmt: skip
    write_parquet(tmp_path / "set/data/train-00000-of-00001.parquet", rows,
                  {"gender": ["MALE", "FEMALE"]})  # fmt: skip
    write_parquet(tmp_path / "set/data/test-00000-of-00001.parquet", rows[:1])
    report = convert(tmp_path / "set", tmp_path / "out/train.list", "--split", "train")
    assert (report.written, report.dropped) == (5, {})
    found = rows_of(tmp_path / "out/train.list")
    assert found[3] == {
        "key": "train-00000-of-00001-00000003",
        "wav": "train/train-00000-of-00001-00000003.flac",
        "txt": "words 3", "task": "<TRANSCRIBE>", "speaker": "anna", "lang": "en",
        "gender": "FEMALE", "extra": {"age": "OLD", "gender": "FEMALE", "score": 3},
    }  # fmt: skip
    for row, one in zip(rows, read_all(tmp_path / "out/train.list"), strict=True):
        assert isinstance(one, Utterance) and one.user.audio is not None
        assert audio.load(one.user.audio).equal(audio.load(row["audio"]["bytes"]))


def test_files_of_one_name_in_two_folders_keep_their_own_sounds(tmp_path: Path):
    rows = [{"audio": sound(tmp_path / "src", f"{name}.wav"), "text": name}
            for name in ("en", "yue", "ja_JP")]  # fmt: skip
    for row in rows[:2]:
        write_parquet(tmp_path / "set" / row["text"] / "train.parquet", [row])
    write_parquet(tmp_path / "set/other.parquet", rows[2:])
    assert convert(tmp_path / "set", tmp_path / "out/a.list").written == 3
    found = {row["txt"]: row for row in rows_of(tmp_path / "out/a.list")}
    for row in rows:
        assert (tmp_path / "out" / found[row["text"]]["wav"]).read_bytes() == row["audio"]["bytes"]
    assert {row["key"] for row in found.values()} == {
        "en/train-00000000", "yue/train-00000000", "other-00000000",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv"])
def test_an_audio_folder_is_read_in_place(tmp_path: Path, form: str):
    folder = tmp_path / "set" / "train"
    for name in ("a.wav", "sub/b.wav"):
        write_noise(folder / name)
    if form.endswith("csv"):
        text = 'file_name,text,emotion,id\na.wav,"one, two",SAD,x/1\nsub/b.wav,three,,x 2\n'
    else:
        text = "".join(json.dumps(row) + "\n" for row in (
            {"file_name": "a.wav", "text": "one, two", "emotion": "SAD", "id": "x/1"},
            {"file_name": "sub/b.wav", "text": "three", "id": "x 2"},
        ))  # fmt: skip
    (folder / form).write_text(text, encoding="utf-8")
    convert(tmp_path / "set", tmp_path / "set/data.list", "--task", "<TRANSCRIBE> <EMOTION>")
    first, second = rows_of(tmp_path / "set/data.list")
    assert first == {"key": "x_1", "wav": "train/a.wav", "txt": "one, two", "emotion": "SAD",
                     "task": "<TRANSCRIBE> <EMOTION>", "extra": {"q_emotion": "SAD"}}  # fmt: skip
    assert (second["key"], second["wav"], second["extra"]) == ("x_2", "train/sub/b.wav", {})


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path):
    folder = tmp_path / "set"
    write_noise(folder / "a.wav")
    write_noise(tmp_path / "secret.wav")
    rows = [{"file_name": "a.wav", "text": "x"}, {"file_name": "gone.wav", "text": "x"},
            {"file_name": "../secret.wav", "text": "x"}, {"file_name": "a.wav", "text": None},
            {"file_name": str(tmp_path / "secret.wav"), "text": "x"}]  # fmt: skip
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = convert(folder, tmp_path / "data.list")
    assert (report.written, report.dropped) == (1, {"bad row": 4})
    told = json.loads((tmp_path / "data.list.report.json").read_text())["left_out"]
    assert ["outside of the data set" in detail for _, detail in told] == [False, True, False, True]


def test_columns_can_be_named(tmp_path: Path):
    write_noise(tmp_path / "set/a.wav")
    row = {"sound": "a.wav", "said": "hello", "text": "not this", "number": "7"}
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps(row))
    words = ["--audio", "sound", "--text", "said", "--key", "number"]
    convert(tmp_path / "set", tmp_path / "data.list", *words)
    (found,) = rows_of(tmp_path / "data.list")
    assert (found["key"], found["txt"], found["wav"]) == ("7", "hello", "set/a.wav")


def test_what_is_no_data_set_is_told(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.parquet").write_text("PAR1")
    for name, message in {
        "gone": "no such folder", "empty": "need \\*.parquet", "broken": "not a parquet file",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            convert(tmp_path / name, tmp_path / "data.list")


def test_a_saved_set_is_read_as_the_same_rows(tmp_path: Path):
    import datasets

    rows = {"audio": [sound(tmp_path / "src", f"{n}.wav") for n in range(3)],
            "text": ["one", "two", "three"], "gender": [0, 1, None]}  # fmt: skip
    features = datasets.Features({
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "text": datasets.Value("string"),
        "gender": datasets.ClassLabel(names=["MALE", "FEMALE"]),
    })  # fmt: skip
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set" / "train")
    assert convert(tmp_path / "set", tmp_path / "out/a.list").written == 3
    found = rows_of(tmp_path / "out/a.list")
    assert [row.get("gender") for row in found] == ["MALE", "FEMALE", None]
    assert [row["key"] for row in found] == [f"train-0000000{n}" for n in range(3)]
    for row, held in zip(found, rows["audio"], strict=True):
        assert (tmp_path / "out" / row["wav"]).read_bytes() == held["bytes"]


def test_links_into_a_cache_of_blobs_are_followed(tmp_path: Path):
    blob = write_noise(tmp_path / "a.wav").rename(tmp_path / "0123")
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "a.wav").symlink_to(blob)
    (folder / "metadata.jsonl").write_text('\ufeff{"file_name": "a.wav", "text": "x\u2028y"}\n')
    assert convert(folder, tmp_path / "data.list").written == 1
    (row,) = rows_of(tmp_path / "data.list")
    assert row["txt"] == "x\u2028y"


def test_a_line_that_cannot_be_read_costs_its_row(tmp_path: Path):
    write_noise(tmp_path / "set/a.wav")
    good = b'{"file_name": "a.wav", "text": "x"}'
    bad = (b"{oops", b"[1]", b'{"file_name": "a.wav", "text": "\xff"}',
           b'{"file_name": "a.wav", "text": "\\ud800"}')  # fmt: skip
    (tmp_path / "set/metadata.jsonl").write_bytes(b"\r\n".join((good, *bad, good)))
    report = convert(tmp_path / "set", tmp_path / "data.list")
    assert (report.written, report.dropped) == (2, {"bad row": 4})
    (tmp_path / "set/metadata.jsonl").unlink()
    write_noise(tmp_path / "set/b.wav", level=0.0)
    rows = (b"a.wav,x", b"a.wav,one, two", b"a.wav", b"a.wav,\xff", b"b.wav,y",
            b"%s.wav,x" % (b"n" * 5000), b"set.csv,x")  # fmt: skip
    table = b"\r\n".join((b"\xef\xbb\xbffile_name,text", *rows))
    (tmp_path / "set/metadata.csv").write_bytes(table)
    report = convert(tmp_path / "set" / ".." / "set", tmp_path / "csv.list")
    assert (report.written, report.dropped) == (2, {"bad row": 5})
    assert report.noted == {"digital silence": 1}


def test_a_text_that_is_no_utf_8_costs_its_row_of_parquet(tmp_path: Path):
    rows = [{"audio": sound(tmp_path / "src", f"{n}.wav"), "text": "one two"} for n in range(3)]
    write_parquet(tmp_path / "set/train.parquet", rows)
    table = parquet.read_table(tmp_path / "set/train.parquet")
    texts = pyarrow.array([b"one", b"tw\xff", b"three"]).view(pyarrow.string())
    table = table.set_column(1, "text", texts)
    parquet.write_table(table, tmp_path / "set/train.parquet")
    report = convert(tmp_path / "set", tmp_path / "data.list")
    assert (report.written, report.dropped) == (2, {"bad row": 1})


def test_without_datasets_parquet_says_what_to_install(tmp_path: Path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        convert(tmp_path, tmp_path / "data.list")
