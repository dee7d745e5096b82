"""Claims about raw lists made of Kaldi folders, Hugging Face data sets and public corpora."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from common_utils import make_raw_from_hf, make_raw_from_kaldi, make_raw_from_public
from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.records import Labels, Utterance
from tests.common_utils.reading import read_all, rows_of, run_tool, write_noise

# Kaldi folders: all that their files tell goes into the list, and nothing is run

from_kaldi = partial(run_tool, make_raw_from_kaldi)


def write_folder(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        write_noise(folder / "audio" / f"{name}.wav", seconds=0.5)
    scp = "".join(f"{name} {folder}/audio/{name}.wav\n" for name in "abc")
    given = {"wav.scp": scp, "text": "a hello there\nb 你好\nc\n"}
    for name, text in (given | files).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_list_holds_what_the_files_tell(tmp_path: Path):
    folder = write_folder(
        tmp_path / "data", utt2spk="a anna\nb bob\nc anna\n", utt2lang="a en\nb cn\nc en\n",
        spk2gender="anna f\nbob m\n", utt2emotion="a HAPPY\n", utt2task="a <EMOTION>\n",
        utt2age="b OLD\n", utt2dur="a 9.9\n", utt2num_frames="a 50\n",
    )  # fmt: skip
    report = from_kaldi(folder, tmp_path / "data.list", "--task", "<TRANSCRIBE> <EMOTION>")
    assert (report.written, report.dropped) == (3, {})
    first, second, third = rows_of(tmp_path / "data.list")
    assert first == {
        "key": "a", "wav": "data/audio/a.wav", "txt": "hello there", "task": "<EMOTION>",
        "emotion": "HAPPY", "lang": "en", "speaker": "anna", "gender": "f",
        "extra": {"q_emotion": "HAPPY", "gender": "FEMALE"},
    }  # fmt: skip
    extra = second["extra"]
    assert (second["txt"], extra["age"], extra["gender"]) == ("你好", "OLD", "MALE")
    assert (third["txt"], third["task"]) == ("", "<TRANSCRIBE> <EMOTION>")
    genders = [one.labels.gender for one in read_all(tmp_path / "data.list")]
    assert genders == ["FEMALE", "MALE", "FEMALE"]


def test_segments_are_parts_of_recordings(tmp_path: Path):
    folder = write_folder(
        tmp_path / "data", segments="x1 a 0.0 0.2\nx2 a 0.25 -1\nx3 b 0.4 9\nx4 gone 0 1\nx5 b 0\n",
        text="".join(f"x{number} t{number}\n" for number in range(1, 7)),
    )  # fmt: skip
    report = from_kaldi(folder, tmp_path / "data.list")
    assert report.dropped == {"bad segment": 1, "no sound file in wav.scp": 1, "not in segments": 1}
    rows = rows_of(tmp_path / "data.list")
    assert [(row["key"], row["start"], row["end"]) for row in rows] == [
        ("x1", 0.0, 0.2), ("x2", 0.25, 0.5), ("x3", 0.4, 9.0)
    ]  # fmt: skip


def test_relative_audio_starts_at_the_root(tmp_path: Path, monkeypatch):
    folder = write_folder(tmp_path / "data", **{"wav.scp": "a audio/a.wav\n", "text": "a x\n"})
    from_kaldi(folder, tmp_path / "one.list", "--root", str(folder))
    monkeypatch.chdir(folder)
    from_kaldi(folder, tmp_path / "two.list")
    assert rows_of(tmp_path / "one.list") == rows_of(tmp_path / "two.list")
    (found,) = read_all(tmp_path / "one.list")
    assert isinstance(found, Utterance) and found.user.audio == folder / "audio/a.wav"


@pytest.mark.parametrize("blank", [" ", "\t", "  \t", "\u3000"])
def test_any_white_space_parts_the_id_and_only_line_feeds_end_lines(tmp_path: Path, blank: str):
    text = f"\ufeffa{blank}one\u2028two\r\nb{blank}three\x85four\x0bfive\x0csix\n"
    folder = write_folder(tmp_path / "data", text=text)
    from_kaldi(folder, tmp_path / "data.list")
    assert [(row["key"], row["txt"]) for row in rows_of(tmp_path / "data.list")] == [
        ("a", "one\u2028two"), ("b", "three\x85four\x0bfive\x0csix")
    ]  # fmt: skip


def test_a_line_that_cannot_be_used_costs_its_utterance(tmp_path: Path):
    folder = write_folder(tmp_path / "data", utt2gender="a m\n")
    (folder / "text").write_bytes(b"a one\nb caf\xe9\nc three\n")
    (folder / "utt2gender").write_bytes(b"a m\nb \xff\n")
    with (folder / "wav.scp").open("a", encoding="utf-8") as file:
        file.write("d sox x.wav -t wav - |\ne gone.wav\n")
    (folder / "text").open("ab").write(b"d four\ne five\n")
    (folder / "audio/a.wav").rename(folder / "blob")
    (folder / "audio/a.wav").symlink_to(folder / "blob")
    report = from_kaldi(folder, tmp_path / "data.list")
    assert (report.written, report.dropped) == (
        2, {"text is not UTF-8": 1, "no sound file in wav.scp": 2}
    )  # fmt: skip
    assert [row["wav"] for row in rows_of(tmp_path / "data.list")] == [
        "data/audio/a.wav", "data/audio/c.wav"
    ]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), [
    ({"wav.scp": "a touch ran | \n"}, "commands are not run"),
    ({"wav.scp": "a raw.ark:17\n"}, r"scp: a: 'raw.ark:17' is a place in an archive.*wav-copy"),
    ({"text": "a x\na y\n"}, "second time"), ({"text": "z x\n"}, "can be used; .*no such id"),
])  # fmt: skip
def test_what_is_no_kaldi_folder_is_told(tmp_path: Path, monkeypatch, files, message: str):
    folder = write_folder(tmp_path / "data", **files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        from_kaldi(folder, tmp_path / "data.list")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "data.list").exists()


# Local Hugging Face data sets, as `datasets` lays them out

from_hf = partial(run_tool, make_raw_from_hf)


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
    report = from_hf(tmp_path / "set", tmp_path / "out/train.list", "--split", "train")
    assert (report.written, report.dropped) == (5, {})
    found = rows_of(tmp_path / "out/train.list")
    assert found[3] == {"key": "train-00000-of-00001-00000003",
                        "wav": "train/train-00000-of-00001-00000003.flac", "txt": "words 3",
                        "task": "<TRANSCRIBE>", "speaker": "anna", "lang": "en", "gender": "FEMALE",
                        "extra": {"age": "OLD", "gender": "FEMALE", "score": 3}}  # fmt: skip
    for row, one in zip(rows, read_all(tmp_path / "out/train.list"), strict=True):
        assert isinstance(one, Utterance) and one.user.audio is not None
        assert audio.load(one.user.audio).equal(audio.load(row["audio"]["bytes"]))


def test_files_of_one_name_in_two_folders_keep_their_own_sounds(tmp_path: Path):
    rows = [{"audio": sound(tmp_path / "src", f"{name}.wav"), "text": name}
            for name in ("en", "yue", "ja_JP")]  # fmt: skip
    for row in rows[:2]:
        write_parquet(tmp_path / "set" / row["text"] / "train.parquet", [row])
    write_parquet(tmp_path / "set/other.parquet", rows[2:])
    assert from_hf(tmp_path / "set", tmp_path / "out/a.list").written == 3
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
    from_hf(tmp_path / "set", tmp_path / "set/data.list", "--task", "<TRANSCRIBE> <EMOTION>")
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
            {"file_name": str(tmp_path / "secret.wav"), "text": "x"},
            {"file_name": "a.wav", "text": "x", "question": 5},
            {"file_name": "a.wav", "text": "x", "id": " "}]  # fmt: skip
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = from_hf(folder, tmp_path / "data.list")
    assert (report.written, report.dropped) == (2, {"bad row": 5})
    told = json.loads((tmp_path / "data.list.report.json").read_text())["left_out"]
    outside = ["outside of the data set" in detail for _, detail in told]
    assert outside == [False, True, False, True, False] and "question is 5" in told[-1][1]
    assert [row["key"] for row in rows_of(tmp_path / "data.list")] == [
        "set-00000000", "set-00000006"]  # fmt: skip


def test_columns_can_be_named(tmp_path: Path):
    write_noise(tmp_path / "set/a.wav")
    row = {"sound": "a.wav", "said": "hello", "text": "not this", "number": "7"}
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps(row))
    words = ["--audio", "sound", "--text", "said", "--key", "number"]
    from_hf(tmp_path / "set", tmp_path / "data.list", *words)
    (found,) = rows_of(tmp_path / "data.list")
    assert (found["key"], found["txt"], found["wav"]) == ("7", "hello", "set/a.wav")


def test_what_is_no_data_set_is_told(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.parquet").write_text("PAR1")
    for name, message in {
        "gone": "no such folder", "empty": "need \\*.parquet", "broken": "not a file that can",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            from_hf(tmp_path / name, tmp_path / "data.list")


def test_a_saved_set_is_read_as_the_same_rows(tmp_path: Path):
    import datasets

    rows = {"audio": [sound(tmp_path / "src", f"{n}.wav") for n in range(3)],
            "text": ["one", "two", "three"], "gender": [0, 1, None]}  # fmt: skip
    features = datasets.Features({
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "text": datasets.Value("string"), "gender": datasets.ClassLabel(names=["MALE", "FEMALE"]),
    })  # fmt: skip
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set" / "train")
    assert from_hf(tmp_path / "set", tmp_path / "out/a.list").written == 3
    found = rows_of(tmp_path / "out/a.list")
    assert [row.get("gender") for row in found] == ["MALE", "FEMALE", None]
    assert [row["key"] for row in found] == [f"data-00000-of-00001-0000000{n}" for n in range(3)]
    for row, held in zip(found, rows["audio"], strict=True):
        assert (tmp_path / "out" / row["wav"]).read_bytes() == held["bytes"]


def test_links_into_a_cache_of_blobs_are_followed(tmp_path: Path):
    blob = write_noise(tmp_path / "a.wav").rename(tmp_path / "0123")
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "a.wav").symlink_to(blob)
    (folder / "metadata.jsonl").write_text('\ufeff{"file_name": "a.wav", "text": "x\u2028y"}\n')
    assert from_hf(folder, tmp_path / "data.list").written == 1
    (row,) = rows_of(tmp_path / "data.list")
    assert row["txt"] == "x\u2028y"


def test_a_line_that_cannot_be_read_costs_its_row(tmp_path: Path):
    write_noise(tmp_path / "set/a.wav")
    good = b'{"file_name": "a.wav", "text": "x"}'
    bad = (b"{oops", b"[1]", b'{"file_name": "a.wav", "text": "\xff"}',
           b'{"file_name": "a.wav", "text": "\\ud800"}')  # fmt: skip
    (tmp_path / "set/metadata.jsonl").write_bytes(b"\r\n".join((good, *bad, good)))
    report = from_hf(tmp_path / "set", tmp_path / "data.list")
    assert (report.written, report.dropped) == (2, {"bad row": 4})
    (tmp_path / "set/metadata.jsonl").unlink()
    rows = (b"a.wav,x", b"a.wav,one, two", b"a.wav", b"a.wav,\xff", b"a.wav,y",
            b"%s.wav,x" % (b"n" * 5000), b"set.csv,x")  # fmt: skip
    table = b"\r\n".join((b"\xef\xbb\xbffile_name,text", *rows))
    (tmp_path / "set/metadata.csv").write_bytes(table)
    report = from_hf(tmp_path / "set" / ".." / "set", tmp_path / "csv.list")
    assert (report.written, report.dropped) == (2, {"bad row": 5})


def test_a_text_that_is_no_utf_8_costs_its_row_of_parquet(tmp_path: Path):
    rows = [{"audio": sound(tmp_path / "src", f"{n}.wav"), "text": "one two"} for n in range(3)]
    write_parquet(tmp_path / "set/train.parquet", rows)
    table = parquet.read_table(tmp_path / "set/train.parquet")
    texts = pyarrow.array([b"one", b"tw\xff", b"three"]).view(pyarrow.string())
    table = table.set_column(1, "text", texts)
    parquet.write_table(table, tmp_path / "set/train.parquet")
    report = from_hf(tmp_path / "set", tmp_path / "data.list")
    assert (report.written, report.dropped) == (2, {"bad row": 1})


# Public corpora: each in its own layout

def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def made(name: str, root: Path, part: str, *more: str) -> list[Utterance]:
    out = root.parent / "out.list"
    argv = [name, str(root), "--part", part, "--out", str(out), *more]
    assert make_raw_from_public.main(argv) == 0
    found = read_all(out)
    assert all(isinstance(one, Utterance) for one in found)
    assert all(one.user.audio.is_file() for one in found)
    return found


LAYOUTS = yaml.safe_load(Path(__file__).with_name("layouts.yaml").read_text(encoding="utf-8"))


def lay_out(root: Path, layout: dict[str, Any]) -> Path:
    for name, text in layout["texts"].items():
        write(root / name, text)
    for name in layout["sounds"]:
        write_noise(root / name)
    return root


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one['corpus']}-{one['part']}")
def test_each_corpus_is_read_as_it_lies(tmp_path, monkeypatch, layout):
    monkeypatch.setattr("common_utils.make_raw_from_public.READ_BYTES", 50)
    found = made(layout["corpus"], lay_out(tmp_path / "root", layout), layout["part"])
    assert [one.key for one in found] == [one["key"] for one in layout["found"]]
    for one, wanted in zip(found, layout["found"], strict=True):
        assert one.user.reply_text == wanted["reply"]
        assert one.labels == Labels(**wanted.get("labels", {}))
        assert one.user.segment_s == (tuple(wanted.get("segment_s", ())) or None)


def test_what_is_asked_for_decides_what_is_left_out(tmp_path):
    aishell, voices = LAYOUTS[0], LAYOUTS[5]
    root = lay_out(tmp_path / "aishell", aishell)
    (one,) = made("aishell1", root, "test", "--task", "<TRANSCRIBE> <GENDER>")
    assert one.user.reply_text == "甚至出现<MALE>" and one.user.text == "甚至出现"
    root = lay_out(tmp_path / "en", voices)
    assert len(made("common_voice", root, "test", "--task", "asr")) == 4


def test_a_line_of_a_corpus_that_cannot_be_used_costs_its_utterance(tmp_path, capsys):
    header = b"Utterance,Emotion,Dialogue_ID,Utterance_ID\n"
    rows = (b"Hi,joy,0,0", b"caf\xe9,joy,0,1", b"Hi,joy", b"Hi, you,joy,0,2", b"Hi,rage,0,3")
    (tmp_path / "test_sent_emo.csv").write_bytes(header + b"\n".join(rows) + b"\n")
    for number in range(4):
        write_noise(tmp_path / f"dia0_utt{number}.wav")
    assert len(made("meld", tmp_path, "test")) == 1
    assert "no label 1, line that cannot be used 4" in capsys.readouterr().out
    segments = [{"sid": sid, "begin_time": 0, "end_time": end, "text": text, "subsets": ["S"]}
                for sid, end, text in (("a", 0.1, "x"), ("b", 0.1, "\ud83d"), ("c", None, "x"))]
    audios = [{"path": "dia0_utt0.wav", "segments": segments}, {"path": "gone"}, 7]
    write(tmp_path / "WenetSpeech.json", json.dumps({"audios": audios}))
    assert [one.key for one in made("wenetspeech", tmp_path, "S")] == ["a"]
    told = capsys.readouterr().out
    assert "no sound" not in told and "cannot be used 3" in told and "not Unicode 1" in told


def test_splits_that_repeat_names_each_get_their_own_sound(tmp_path, capsys):
    header = "Utterance,Emotion,Dialogue_ID,Utterance_ID\n"
    folders = {"train": "train_splits", "dev": "dev_splits_complete",
               "test": "output_repeated_splits_test"}  # fmt: skip
    for number, (part, folder) in enumerate(folders.items(), 1):
        write_noise(tmp_path / folder / "dia0_utt0.wav", seconds=number / 10)
        write(tmp_path / f"{part}_sent_emo.csv", f"\ufeff{header}Hi {part},joy,0,0\r\n")
    for part, folder in folders.items():
        (one,) = made("meld", tmp_path, part)
        assert one.user.audio == tmp_path / folder / "dia0_utt0.wav"
        assert one.user.text == f"Hi {part}"
    (tmp_path / "dev_splits_complete" / "dia0_utt0.wav").unlink()
    with pytest.raises(AssertionError):
        made("meld", tmp_path, "dev")
    write_noise(tmp_path / "again" / "dia0_utt0.WAV")
    write_noise(tmp_path / "more" / "dia0_utt0.wav")
    arguments = ["meld", str(tmp_path), "--part", "dev", "--out", str(tmp_path / "x.list")]
    assert make_raw_from_public.main(arguments) == 2 and "one name twice" in capsys.readouterr().err
