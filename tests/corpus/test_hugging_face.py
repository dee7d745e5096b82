"""Claims about local Hugging Face data sets, as the `datasets` library lays them out."""

import json
from pathlib import Path
from typing import Any

import pytest

from osum_echat import audio
from osum_echat.corpus import options
from osum_echat.corpus.hugging_face import run_arguments
from osum_echat.corpus.jobs import Report
from osum_echat.errors import InputError
from osum_echat.records import Utterance
from tests.corpus.reading import read_all, write_noise


def convert(folder: Path, out: Path, *words: str) -> Report:
    arguments = options.make_raw_from_hf().parse_args([str(folder), str(out), *words])
    return run_arguments(arguments)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_parquet(
    path: Path, rows: list[dict[str, Any]], classes: dict[str, list[str]] | None = None
) -> Path:
    """A file as `to_parquet` writes it, of row groups of two."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {name: {"names": names, "_type": "ClassLabel"}
                for name, names in (classes or {}).items()}  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata(
        {
            "huggingface": json.dumps(
                {"info": {"features": features | {"audio": {"_type": "Audio"}}}}
            )
        }
    )
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
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/data-00000.arrow").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/metadata.jsonl").write_text("{oops")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.parquet").write_text("PAR1")
    for name, message in {
        "gone": "no such folder", "empty": "need \\*.parquet", "saved": "to_parquet",
        "bad": "cannot be read", "broken": "not a parquet file",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            convert(tmp_path / name, tmp_path / "data.list")


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path, monkeypatch):
    import sys

    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        convert(tmp_path, tmp_path / "data.list")
