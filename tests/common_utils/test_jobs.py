"""Claims about long jobs: stopped anywhere and started again, the output is the same."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from common_utils import extract_speech_tokens
from common_utils.command import command
from common_utils.jobs import Job, Made, Report, Work, in_order, pieces, records, run
from osum_echat import audio, files
from osum_echat.data.sources import Dropped
from osum_echat.errors import CheckpointError, DataError, InputError
from osum_echat.paths import TINY
from osum_echat.records import Utterance
from osum_echat.token2wav.voice import SpeechTokenizer
from tests.common_utils.reading import read_all, rows_of, run_tool, shards, write_noise, write_raw
from tests.training import processes
from tests.training.processes import kill_when


def double(number: int) -> Made:
    """Lines for a number; odd hundreds are left out."""
    if number % 100 == 99:
        return Made([], [Dropped("ninety-nine", str(number))])
    return Made([str(2 * number)])


def failing(stop: int, seen: list[int], number: int) -> Made:
    """As `double` until it breaks."""
    if number == stop:
        raise RuntimeError("the power went")
    seen.append(number)
    return double(number)


def job(out: Path, make, settings: str = "same", count: int = 10, **more) -> Report:
    """Numbers below `count`."""
    return run(Job(out, settings, make, (), Work(**more)), range(count), "numbers")


def test_what_a_function_takes_are_the_options_of_its_command():
    taken = []

    def take(
        what: Literal["a", "b"], /, size: int, places: tuple[Path, ...] = (), fast: bool = False,
        name: str | None = None,
    ) -> None:  # fmt: skip
        taken.append((what, size, places, fast, name))

    main = command(take, size="how large")
    assert main("a --size 3 --places x y --fast".split()) == main("b --size 4".split()) == 0
    assert taken == [("a", 3, (Path("x"), Path("y")), True, None), ("b", 4, (), False, None)]
    for wrong in ("c --size 3", "a", "a --size x", "a --size 3 more"):
        with pytest.raises(SystemExit):
            main(wrong.split())


@pytest.mark.parametrize("stop", [0, 1, 7, 99])
def test_a_stopped_job_goes_on_and_ends_as_one_that_was_not(tmp_path: Path, stop: int):
    whole = job(tmp_path / "whole", double, count=100)
    with pytest.raises(RuntimeError):
        job(tmp_path / "out", partial(failing, stop, []), count=100)
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    report = job(tmp_path / "out", partial(failing, -1, seen), count=100)
    assert seen == list(range(stop, 100))
    assert (tmp_path / "out").read_text() == (tmp_path / "whole").read_text()
    assert (report.written, report.dropped) == (whole.written, whole.dropped) == (
        99, {"ninety-nine": 1}
    )  # fmt: skip
    assert {one.name for one in tmp_path.iterdir()} == {
        "out", "out.report.json", "whole", "whole.report.json"
    }  # fmt: skip


@pytest.mark.parametrize("torn", [b'{"lines": ["12"', b'{"lines": ["99"], "dropped": []', b""])
def test_a_torn_last_line_of_the_journal_is_made_again(tmp_path: Path, torn: bytes):
    with pytest.raises(RuntimeError):
        job(tmp_path / "out", partial(failing, 5, []))
    with (tmp_path / ".out.journal").open("ab") as journal:
        journal.write(torn)
    job(tmp_path / "out", double)
    assert (tmp_path / "out").read_text().split() == [str(2 * number) for number in range(10)]


def test_a_job_is_left_as_it_is_until_its_settings_change_or_nothing_could_be_used(tmp_path):
    with pytest.raises(RuntimeError):
        job(tmp_path / "out", partial(failing, 5, []), "unfinished")
    seen: list[int] = []
    for _ in range(2):
        assert job(tmp_path / "out", partial(failing, -1, seen)).written == 10
    assert len(seen) == 10
    job(tmp_path / "out", partial(failing, -1, seen), "other")
    job(tmp_path / "out", partial(failing, -1, seen), "other", overwrite=True)
    assert len(seen) == 30
    with pytest.raises(InputError, match="left out: worn 10: nothing can be used; the first: out"):
        job(tmp_path / "out", lambda number: Made([], [Dropped("worn", "out")]))
    assert job(tmp_path / "out", double).written == 10


def test_a_job_that_another_process_is_doing_is_not_begun(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "_lock", partial(files._lock, wait_s=0.0))
    told = pytest.raises(InputError, match="another process is writing here")
    for overwrite in (False, True):
        with files.Journal(tmp_path / ".out.journal"), told:
            job(tmp_path / "out", double, overwrite=overwrite)
    assert job(tmp_path / "out", double).written == 10 and len(list(tmp_path.iterdir())) == 2


def test_rows_that_are_added_to_a_list_are_made(tmp_path: Path):
    write_noise(tmp_path / "a.wav")
    rows = [{"key": key, "wav": "a.wav", "txt": key} for key in "abcd"]
    assert shards(write_raw(tmp_path, rows[:2]), tmp_path / "out", "--per-tar", "2").written == 2
    assert shards(write_raw(tmp_path, rows), tmp_path / "out", "--per-tar", "2").written == 4
    assert [one.key for one in read_all(tmp_path / "out/shards_list.txt")] == list("abcd")


def end_itself(number: int) -> int:
    """What the kernel does to a process that takes too much memory."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_without_ray_or_its_cluster_a_job_says_so(tmp_path: Path, monkeypatch):
    with pytest.raises(InputError, match="workers 0"):
        job(tmp_path / "out", double, ray="local", workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray is missing; pip install -r requirements-ray\.txt"):
        job(tmp_path / "out", double, ray="local")


@pytest.mark.slow
def test_several_processes_give_the_same_order_and_tell_of_a_killed_one():
    assert list(in_order(abs, range(-50, 0), 2)) == list(range(50, 0, -1))
    with pytest.raises(InputError, match="fewer workers"):
        list(in_order(end_itself, range(10), 2))


@pytest.mark.slow
def test_a_killed_conversion_loses_nothing(tmp_path: Path):
    for number in range(40):
        write_noise(tmp_path / f"{number}.wav", seconds=8.0, rate=44_100)
    rows = [{"key": f"k{number}", "wav": f"{number}.wav", "txt": "x"} for number in range(40)]
    raw = write_raw(tmp_path, rows)
    shards(raw, tmp_path / "whole", "--per-tar", "2")
    out = tmp_path / "out"
    command = [sys.executable, "common_utils/make_shard_from_raw.py", str(raw), str(out),
               "--per-tar", "2", "--workers", "2"]  # fmt: skip
    journal = out / ".shards_list.txt.journal"
    assert kill_when(command, lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 4)
    assert not (out / "shards_list.txt").exists()
    done = journal.read_bytes().count(b"\n") - 1
    processes.run(command)
    for tar in sorted((tmp_path / "whole").glob("*.tar")):
        assert (out / tar.name).read_bytes() == tar.read_bytes()
    assert json.loads((out / "shards_list.txt.report.json").read_text())["written"] == 40
    assert 0 < done < 20 and not list(out.glob(".*"))


def test_a_list_without_records_or_that_shrinks_is_an_error(tmp_path: Path):
    path = tmp_path / "a.list"
    path.write_text("\n \n")
    with pytest.raises(DataError, match="no records"):
        pieces(path, 1)
    path.write_text("{}\n{}\n")
    (piece,) = pieces(path, 2)
    path.write_text("{}\n")
    with pytest.raises(InputError, match="changed while it was read"):
        list(records(piece))


# Claims about speech tokens of a list: those of the reply, the same however often one starts.

TOKENIZER = TINY / "token2wav" / "speech_tokenizer.onnx"


extract = partial(run_tool, extract_speech_tokens)


def tokens_of(path: Path) -> list[Any]:
    return [row.get("extra", {}).get("speech_token") for row in rows_of(path)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A text to speak, a dialogue with its reply recorded, and one without."""
    for name in ("user", "reply"):
        write_noise(tmp_path / f"{name}.wav", seconds=1.0)
    return write_raw(tmp_path, [
        {"key": "tts", "wav": "reply.wav", "txt": "x", "task": "<TEXT2TOKEN>"},
        {"key": "chat", "wav": "user.wav", "txt": "x", "task": "<S2TCHAT> <TEXT2TOKEN>",
         "extra": {"a_wav_path": "reply.wav", "age": "OLD"}},
        {"key": "lost", "wav": "user.wav", "txt": "x", "task": "<S2TCHAT> <TEXT2TOKEN>"},
        {"key": "gone", "wav": "gone.wav", "txt": "x", "task": "<TEXT2TOKEN>"},
        {"key": "part", "wav": "reply.wav", "txt": "x", "task": "<TEXT2TOKEN>",
         "start": 0.0, "end": 0.4},
        {"key": "had", "wav": "reply.wav", "txt": "x", "task": "<TEXT2TOKEN>",
         "extra": {"speech_token": [1, 2, 3]}},
    ])  # fmt: skip


def test_the_reply_is_listened_to_and_never_the_user(raw: Path, tmp_path: Path):
    report = extract(raw, tmp_path / "new.list")
    assert report.dropped == {"no recording of the reply": 1, "audio or task cannot be used": 1}
    expected = SpeechTokenizer(TOKENIZER)(audio.load(tmp_path / "reply.wav"))
    first, second, part, again = tokens_of(tmp_path / "new.list")
    assert first == second == again == expected and len(expected) == 25 and len(part) == 10
    (chat,) = [one for one in read_all(tmp_path / "new.list")
               if isinstance(one, Utterance) and one.key == "chat"]  # fmt: skip
    assert chat.labels.age == "OLD" and chat.user.reply_speech == tuple(expected)
    extract(raw, tmp_path / "far/away/new.list")
    for one in read_all(tmp_path / "far/away/new.list"):
        assert isinstance(one, Utterance) and isinstance(one.user.audio, Path)
        assert one.user.audio.is_file()
    told = [row["extra"].get("a_wav_path") for row in rows_of(tmp_path / "far/away/new.list")]
    assert told[1] == str(tmp_path / "reply.wav")


def test_what_needs_no_tokens_stays_in_the_list_and_those_there_can_be_kept(raw, tmp_path: Path):
    rows = [{"key": "heard", "wav": "user.wav", "txt": "x", "task": "<TRANSCRIBE>"},
            {"key": "read", "txt": "x", "task": "<TEXT2TEXT>"}]  # fmt: skip
    with raw.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert extract(raw, tmp_path / "new.list", "--keep").written == 6
    assert tokens_of(tmp_path / "new.list")[-3:] == [[1, 2, 3], None, None]


def test_a_clip_longer_than_the_tokenizer_hears_is_named_with_it(raw, tmp_path, monkeypatch):
    """As the published file, which has positions for 30 s."""
    write_noise(tmp_path / "reply.wav", seconds=3.0)
    write_noise(tmp_path / "user.wav", seconds=1.5)
    whole = SpeechTokenizer.run

    def limited(self, features, lengths):
        if lengths[0] > 200:
            raise CheckpointError("model.onnx: fails on a recording (300 by 200)")
        return whole(self, features, lengths)

    monkeypatch.setattr(SpeechTokenizer, "run", limited)
    extract(raw, tmp_path / "new.list", "--field", "wav")
    left_out = json.loads((tmp_path / "new.list.report.json").read_text())["left_out"]
    assert len(left_out) == 3 and len(tokens_of(tmp_path / "new.list")) == 3
    assert "(record 1): " in left_out[0][1] and "reply.wav: 3.0 s, longer than" in left_out[0][1]


def test_what_is_wrong_is_told_before_the_work(raw: Path, tmp_path: Path):
    with pytest.raises(InputError, match="this is the input"):
        extract(raw, raw)
    with pytest.raises(InputError, match="give --tokenizer"):
        extract(raw, tmp_path / "new.list", "--tokenizer", str(tmp_path))
    with pytest.raises(CheckpointError, match="speech tokenizer is needed"):
        extract(raw, tmp_path / "new.list", "--tokenizer", str(TOKENIZER.with_name("speaker.onnx")))
