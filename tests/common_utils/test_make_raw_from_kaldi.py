"""Claims about Kaldi folders: all that their files tell goes into the list, and nothing is run."""

from functools import partial
from pathlib import Path

import pytest

from common_utils import make_raw_from_kaldi
from osum_echat.errors import InputError
from osum_echat.records import Utterance
from tests.common_utils.reading import read_all, rows_of, run_tool, write_noise

convert = partial(run_tool, make_raw_from_kaldi)


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
    report = convert(folder, tmp_path / "data.list", "--task", "<TRANSCRIBE> <EMOTION>")
    assert (report.written, report.dropped) == (3, {})
    first, second, third = rows_of(tmp_path / "data.list")
    assert first == {
        "key": "a", "wav": "data/audio/a.wav", "txt": "hello there", "task": "<EMOTION>",
        "emotion": "HAPPY", "lang": "en", "speaker": "anna", "gender": "f",
        "extra": {"q_emotion": "HAPPY", "gender": "FEMALE", "duration": 0.5},
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
    report = convert(folder, tmp_path / "data.list")
    assert report.dropped == {"bad segment": 2, "no sound file in wav.scp": 1, "not in segments": 1}
    rows = rows_of(tmp_path / "data.list")
    assert [(row["key"], row["start"], row["end"]) for row in rows] == [
        ("x1", 0.0, 0.2), ("x2", 0.25, 0.5)
    ]  # fmt: skip
    assert [row["extra"]["duration"] for row in rows] == [0.2, 0.25]


def test_relative_audio_starts_at_the_root(tmp_path: Path, monkeypatch):
    folder = write_folder(tmp_path / "data", **{"wav.scp": "a audio/a.wav\n", "text": "a x\n"})
    convert(folder, tmp_path / "one.list", "--root", str(folder))
    monkeypatch.chdir(folder)
    convert(folder, tmp_path / "two.list")
    assert rows_of(tmp_path / "one.list") == rows_of(tmp_path / "two.list")
    (found,) = read_all(tmp_path / "one.list")
    assert isinstance(found, Utterance) and found.user.audio == folder / "audio/a.wav"


@pytest.mark.parametrize("blank", [" ", "\t", "  \t", "\u3000"])
def test_any_white_space_parts_the_id_and_only_line_feeds_end_lines(tmp_path: Path, blank: str):
    text = f"\ufeffa{blank}one\u2028two\r\nb{blank}three\x85four\x0bfive\x0csix\n"
    folder = write_folder(tmp_path / "data", text=text)
    convert(folder, tmp_path / "data.list")
    assert [(row["key"], row["txt"]) for row in rows_of(tmp_path / "data.list")] == [
        ("a", "one\u2028two"), ("b", "three\x85four\x0bfive\x0csix")
    ]  # fmt: skip


def test_audio_that_cannot_be_opened_is_left_out_and_counted(tmp_path: Path):
    folder = write_folder(tmp_path / "data")
    (folder / "audio/a.wav").unlink()
    (folder / "audio/b.wav").write_text("no sound")
    write_noise(folder / "audio/c.wav", level=0.0)
    report = convert(folder, tmp_path / "data.list")
    assert (report.written, report.dropped) == (1, {"audio cannot be used": 2})
    assert report.noted == {"digital silence": 1}


def test_a_line_that_cannot_be_used_costs_its_utterance(tmp_path: Path):
    folder = write_folder(tmp_path / "data", utt2gender="a m\n")
    (folder / "text").write_bytes(b"a one\nb caf\xe9\nc three\n")
    (folder / "utt2gender").write_bytes(b"a m\nb \xff\n")
    with (folder / "wav.scp").open("a", encoding="utf-8") as file:
        file.write("d sox x.wav -t wav - |\n")
    (folder / "text").open("ab").write(b"d four\n")
    (folder / "audio/a.wav").rename(folder / "blob")
    (folder / "audio/a.wav").symlink_to(folder / "blob")
    report = convert(folder, tmp_path / "data.list")
    assert (report.written, report.dropped) == (
        2, {"text is not UTF-8": 1, "no sound file in wav.scp": 1}
    )  # fmt: skip
    assert [row["wav"] for row in rows_of(tmp_path / "data.list")] == [
        "data/audio/a.wav", "data/audio/c.wav"
    ]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), [
    ({"wav.scp": "a touch ran | \n"}, "commands are not run"),
    ({"wav.scp": "a raw.ark:17\n"}, r"scp: a: 'raw.ark:17' is a place in an archive.*wav-copy"),
    ({"text": "a x\na y\n"}, "second time"), ({"text": "z x\n"}, "no utterance of `text`"),
])  # fmt: skip
def test_what_is_no_kaldi_folder_is_told(tmp_path: Path, monkeypatch, files, message: str):
    folder = write_folder(tmp_path / "data", **files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "data.list")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "data.list").exists()
