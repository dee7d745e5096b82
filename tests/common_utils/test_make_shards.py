"""Claims about tars made of raw lists, combine pairs made of tars, and looking at a corpus."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import do_test_dataloader
from common_utils import inspect_data, make_shard_from_raw
from common_utils.make_shard_from_raw import wav_bytes
from osum_echat import audio
from osum_echat.data.loader import ListSettings
from osum_echat.errors import InputError, OsumError
from osum_echat.paths import TINY
from osum_echat.records import Utterance
from tests.common_utils import reading
from tests.common_utils.reading import (
    assert_equal,
    combine,
    read_all,
    rows_of,
    shards,
    write_noise,
    write_raw,
)
from tests.data.world import write_world
from tests.training.experiment import write_experiment

# Shards: what is written is what was listed, and nothing flows into anything else.


@pytest.mark.parametrize("per_tar", [1, 3, 100])
@pytest.mark.parametrize("kind", ["understand", "tts", "s2s_think", "t2t", "history"])
def test_raw_shard_and_combine_give_equal_utterances(tmp_path: Path, kind: str, per_tar: int):
    raw = write_world(tmp_path / "raw")[kind]
    report = shards(raw, tmp_path / "shard", "--per-tar", str(per_tar))
    assert (report.written, report.dropped) == (8, {})
    reading.combine(tmp_path / "shard/shards_list.txt", tmp_path / "combine")
    for form in ("shard/shards_list.txt", "combine/combines_list.txt"):
        assert_equal(read_all(raw), read_all(tmp_path / form))
    assert len(list((tmp_path / "shard").glob("*.tar"))) == -(-8 // per_tar)


def test_any_sound_becomes_what_the_raw_reader_hears(tmp_path: Path):
    sounds = {"a.flac": (16_000, 1), "b.ogg": (16_000, 1), "c.wav": (44_100, 2),
              "d.mp3": (22_050, 1)}  # fmt: skip
    for name, (rate, channels) in sounds.items():
        write_noise(tmp_path / name, rate, channels=channels)
    raw = write_raw(tmp_path, [{"key": name, "wav": name, "txt": "x"} for name in sounds])
    shards(raw, tmp_path / "out")
    assert_equal(read_all(raw), read_all(tmp_path / "out/shards_list.txt"), reading.ROUNDING)


def test_a_segment_is_cut_out_and_samples_beyond_full_scale_are_clipped(tmp_path: Path):
    write_noise(tmp_path / "a.wav")
    raw = write_raw(tmp_path, [{"key": "a", "wav": "a.wav", "txt": "x", "start": 0.1, "end": 0.25}])
    shards(raw, tmp_path / "out")
    (found,) = read_all(tmp_path / "out/shards_list.txt")
    assert isinstance(found, Utterance) and isinstance(found.user.audio, bytes)
    assert found.user.segment_s is None and len(audio.load(found.user.audio)) == 2_400
    assert_equal(read_all(raw), [found])
    samples = torch.tensor([1.0, 1.5, -1.0, -1.5, 0.5, 2e-5])
    read, rate = soundfile.read(io.BytesIO(wav_bytes(samples)), dtype="int16")
    assert rate == 16_000 and read.tolist() == [32_767, 32_767, -32_768, -32_768, 16_384, 1]


def test_sound_that_is_no_sound_is_told_and_counted(tmp_path: Path):
    noise = np.random.default_rng(0).normal(0, 3_000, 8_000).round().astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", noise, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8_000), 16_000)
    rows = [{"key": name, "wav": f"{name}.wav", "txt": "x"} for name in ("loud", "silent")]
    raw = write_raw(tmp_path, rows)
    shards(raw, tmp_path / "out")
    tally = inspect_data.scan("raw", ListSettings(str(raw)))
    assert [one.detail[:6] for one in tally.noted] == ["loud: ", "silent"]
    loud = read_all(tmp_path / "out/shards_list.txt")[0].user.audio
    assert np.abs(audio.load(loud).numpy() - noise / 32_768).max() < 1e-4


def test_members_have_the_original_names_order_and_contents(tmp_path: Path):
    for name in ("a.wav", "b.wav"):
        write_noise(tmp_path / name)
    odd = "\ufeff 嗨\u2028\r\n\x85\x0b\x1c😀 "
    row = {"key": "鍵.1", "wav": "a.wav", "txt": "你好", "wav_1": "b.wav", "txt_1": odd,
           "task": "<S2TCHAT> <TEXT2TOKEN> <HISTORY>", "speaker": "王", "gender": "female",
           "extra": '{"duration": 0.3, "speech_token": [1, 2], "age": "OLD"}'}  # fmt: skip
    raw = write_raw(tmp_path, [row])
    shards(raw, tmp_path / "out", "--prefix", "mine")
    with tarfile.open(tmp_path / "out/mine_000000000.tar", "r:") as archive:
        members = {one.name: archive.extractfile(one).read() for one in archive}
        plain = [(one.mode, one.uid, one.mtime) for one in archive]
    assert plain == [(0o644, 0, 0)] * 11
    assert [name.removeprefix("鍵.1.") for name in members] == [
        "txt", "wav", "wav_1", "txt_1", "task", "lang", "speaker", "emotion", "gender",
        "duration", "extra",
    ]  # fmt: skip
    texts = {name.removeprefix("鍵.1."): data.decode() for name, data in members.items()
             if ".wav" not in name}  # fmt: skip
    assert texts == {
        "txt": "你好", "txt_1": odd, "task": row["task"], "lang": "none", "speaker": "王",
        "emotion": "none", "gender": "female", "duration": "0.3",
        "extra": '{"speech_token": [1, 2], "age": "OLD"}',
    }  # fmt: skip
    assert (tmp_path / "out/mine_000000000.tar.finished").read_bytes() == b""
    assert (tmp_path / "out/shards_list.txt").read_text() == "mine_000000000.tar\n"


def test_what_cannot_be_used_is_left_out_whole_and_counted(tmp_path: Path):
    good = write_noise(tmp_path / "good.wav").name
    write_noise(tmp_path / "cut.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:900])
    (tmp_path / "empty.wav").touch()
    rows = [{"key": "a", "wav": good, "txt": "x"}, "{oops", "[1]",
            {"key": "b", "wav": "gone.wav", "txt": "x"}, {"key": "c", "wav": "cut.wav", "txt": "x"},
            {"key": "d", "wav": "empty.wav", "txt": "x"}, {"key": "e", "wav": good},
            {"key": "f", "wav": good, "txt": "x", "wav_1": "gone.wav", "txt_1": "y"},
            {"key": "g", "wav": good, "txt": "half \ud800"},
            {"key": "h", "wav": good, "txt": "x", "extra": "{"},
            {"key": "z", "wav": good, "txt": "x"}]  # fmt: skip
    raw = tmp_path / "data.list"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    raw.write_text("\n\n".join(lines) + "\n\n \n", encoding="utf-8")
    report = shards(raw, tmp_path / "out")
    assert report.written == 2
    assert report.dropped == {"not JSON": 1, "not an object": 1, "audio cannot be used": 4,
                              "bad record": 2, "text is not Unicode": 1}  # fmt: skip
    assert [one.key for one in read_all(tmp_path / "out/shards_list.txt")] == ["a", "z"]
    told = json.loads((tmp_path / "out/shards_list.txt.report.json").read_text())
    assert len(told["left_out"]) == 9
    assert "record 4" in told["left_out"][2][1] and "gone.wav" in told["left_out"][2][1]


def test_a_key_that_leads_elsewhere_is_refused(tmp_path: Path):
    keys = ("/etc/x", "../x", "a/../b", "a\\b", "", "a\nb", "a\0b", "x" * 2000, "a/b.c")
    rows = [{"key": key, "txt": "x", "task": "<TEXT2TEXT>"} for key in keys]
    report = shards(write_raw(tmp_path, rows), tmp_path / "out")
    assert report.dropped == {"bad record": 8}
    assert [one.key for one in read_all(tmp_path / "out/shards_list.txt")] == ["a/b.c"]


def test_utterances_of_one_key_do_not_flow_together(tmp_path: Path):
    rows = [{"key": key, "txt": text, "task": "<TEXT2TEXT>", "extra": {"question": text}}
            for key, text in (("a", "1"), ("a", "2"), ("a_2", "3"), ("a", "4"))]  # fmt: skip
    shards(write_raw(tmp_path, rows), tmp_path / "out")
    reading.combine(tmp_path / "out/shards_list.txt", tmp_path / "combine")
    for form in ("out/shards_list.txt", "combine/combines_list.txt"):
        found = [(one.key, one.user.reply_text) for one in read_all(tmp_path / form)]
        assert found == [("a", "1"), ("a_2", "2"), ("a_2_2", "3"), ("a_3", "4")]


def test_a_task_that_hears_nothing_needs_no_audio_and_a_lost_turn_leaves_no_history(tmp_path: Path):
    rows = [{"key": task, "wav": "dummy.wav", "txt": "x", "task": f"<{task}>"}
            for task in ("TEXT2TEXT", "TEXT2TOKEN", "TRANSCRIBE")]  # fmt: skip
    report = shards(write_raw(tmp_path, rows), tmp_path / "out")
    assert (report.written, report.dropped) == (2, {"audio cannot be used": 1})
    wav = write_noise(tmp_path / "a.wav").name
    row = {"key": "a", "wav": wav, "txt": "x", "wav_1": "-1", "txt_1": "y"}
    raw = write_raw(tmp_path, [row])
    shards(raw, tmp_path / "out")
    assert_equal(read_all(raw), read_all(tmp_path / "out/shards_list.txt"))


# Combine lists: the words of every tar, however many, with each one's own task.

@pytest.fixture
def shard_list(tmp_path: Path) -> Path:
    raw = write_world(tmp_path / "raw")["s2s_think"]
    shards(raw, tmp_path / "shard", "--per-tar", "3")
    return tmp_path / "shard/shards_list.txt"


def test_the_files_are_those_that_users_know_each_with_its_task(shard_list: Path, tmp_path: Path):
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
    report = combine(shard_list, tmp_path / "combine", "--task", "<S2TCHAT>")
    assert report.written == 8
    assert rows_of(path.with_name("shard_000000000.list.before"))[0]["txt"] == "New words."


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(("kind", "data", "reason"),
                         [("extra", b"{oops", "bad record"), ("extra", b"[]", "bad record"),
                          ("extra", b'{"age": "\\ud800"}', "bad record"),
                          ("txt", b"\xff\xfe", "bad record"), ("task", b"none", None)])  # fmt: skip
def test_a_member_that_cannot_be_read_leaves_its_utterance_out(tmp_path, kind, data, reason):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for key in ("a", "../up", "b"):
            for name, held in {"txt": b"x", "task": b"<TEXT2TEXT>", "extra": b"{}"}.items():
                add(archive, f"{key}.{name}", data if (key, name) == ("a", kind) else held)
    report = combine(tmp_path / "a.tar", tmp_path / "combine")
    assert report.dropped == {"unsafe name": 1} | ({reason: 1} if reason else {})
    assert rows_of(tmp_path / "combine/a.list")[-1]["key"] == "b"


def test_lists_that_name_no_plain_tars_are_an_error(tmp_path: Path, shard_list: Path):
    for line, message in {"gone.tar": "no such file", "words": "names no tar"}.items():
        path = shard_list.with_name("bad.txt")
        path.write_text(line + "\n")
        with pytest.raises(OsumError, match=message):
            combine(path, tmp_path / "combine")
    shard_list.write_text("-|shard_000000000.tar\n")
    assert combine(shard_list, tmp_path / "combine").written == 3


@pytest.mark.parametrize(("tar", "there", "message"), [
    ("data.tar", "none", "give the tar another name"),
    ("a.tar", "a.list", "no list of this command"),
    ("a.tar", "data.list", "no list of this command"),
])  # fmt: skip
def test_a_list_of_ones_own_and_that_of_all_lines_are_not_written_over(
    tmp_path: Path, tar: str, there: str, message: str
):
    (tmp_path / there).write_text("mine")
    with tarfile.open(tmp_path / tar, "w") as archive:
        add(archive, "a.txt", b"x")
    with pytest.raises(InputError, match=message):
        combine(tmp_path / tar, tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {tar, there}
    assert (tmp_path / there).read_text() == "mine"


# The doors that make corpora: as printed in the README, and on the fake data.

HOUSE = Path(__file__).parents[2]
FAKE = HOUSE / "common_utils" / "fake_data"
def test_the_commands_of_the_fake_data_rebuild_it_bit_for_bit(tmp_path: Path):
    copy = tmp_path / "common_utils" / "fake_data"
    made = ("*.tar", "*.finished", "*.txt", "*.json", "shard_*.list", "*.index", "__pycache__")
    shutil.copytree(FAKE, copy, ignore=shutil.ignore_patterns(*made))
    (copy / "combine" / "data.list").unlink()
    shards, combines = "shard/do_make_shard_from_raw.py", "combine/do_make_combine_from_shard.py"
    for script in (shards, combines, combines):     # and where they are, without a report: a clone
        path = f"./common_utils/fake_data/{script}"
        subprocess.run([sys.executable, path], cwd=tmp_path, check=True, capture_output=True)
        for report in copy.rglob("*.report.json"):
            report.unlink()
    for folder in ("shard", "combine"):
        names = {one.name for one in (FAKE / folder).iterdir() if one.is_file()}
        names = {name for name in names if not name.endswith((".index", ".pyc", ".report.json"))}
        assert {one.name for one in (copy / folder).iterdir() if one.is_file()} == names
        for name in names:
            assert (copy / folder / name).read_bytes() == (FAKE / folder / name).read_bytes(), name


def test_a_list_of_which_nothing_can_be_used_is_an_error(tmp_path: Path, capsys):
    raw = tmp_path / "data.list"
    raw.write_text('{"key": "a", "wav": "gone.wav", "txt": "x"}\n')
    assert make_shard_from_raw.main([str(raw), str(tmp_path / "out")]) == 2
    assert "nothing can be used" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


# Looking at a corpus: what is shown is what a training would get, in every form

PNG = b"\x89PNG"


def tables(text: str) -> list[str]:
    """What is printed for each list, without the times."""
    parts = [part.partition("\n")[2] for part in text.split("== ")[1:]]
    return ["\n".join(part.rstrip().splitlines()[1:]) for part in parts]


def test_the_fake_data_looks_the_same_in_its_three_forms(capsys):
    assert do_test_dataloader.main([]) == 0
    raw, shard, combined = tables(capsys.readouterr().out)
    assert raw == shard == combined and raw.splitlines()[-1] == "   dropped: none"
    for number in range(1, 11):
        assert f"fake_{number:02d}_" in raw
    assert "I see, my friend. Many voices become one." in raw


def test_an_experiment_shows_each_of_its_lists(tmp_path: Path, capsys):
    path = write_experiment(tmp_path)
    names = list(inspect_data.corpus_of(path, str(TINY)).lists)
    assert do_test_dataloader.main(["--config", str(path)]) == 0
    out = capsys.readouterr().out
    shown = [line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("==")]
    assert shown == names and out.count("first batch after") == len(names)


def test_a_data_yaml_tells_what_cannot_be_used(tmp_path: Path, capsys):
    lists = write_world(tmp_path / "world")
    write_raw(tmp_path / "bad", [{"key": "a", "wav": "gone.wav", "txt": "x"}])
    config = tmp_path / "data.yaml"
    config.write_text(
        f"good: {{path: {lists['t2t']}, weight: 2}}\nbad: {{path: bad/data.list}}\n"
        "gone: {path: nowhere.list}\noff: {path: nowhere.list, weight: 0}\n"
    )
    assert do_test_dataloader.main(["--config", str(config)]) == 0
    good, bad, gone = capsys.readouterr().out.split("== ")[1:]
    assert "8 utterances" in good and "dropped: none" in good
    assert "cannot be used" in bad and "1" in bad
    assert "nowhere.list" in gone and "cannot be used" in gone
    config.write_text("bad: {path: bad/data.list}\ngone: {path: nowhere.list}\n")
    assert do_test_dataloader.main(["--config", str(config)]) == 2
    assert "none of 2 lists can be used" in capsys.readouterr().err
    argv = ["--config", str(config), "--stats", "--out", str(tmp_path / "out")]
    assert do_test_dataloader.main(argv) == 2
    told = capsys.readouterr().out.split("== ")
    assert "1 bad" in told[1] and "cannot be used" in told[2] and "bad_members.txt" in told[2]


def test_the_statistics_count_hours_labels_and_bad_members(tmp_path: Path, capsys):
    for name in ("a", "b", "c"):
        write_noise(tmp_path / f"{name}.wav", seconds=0.5)
    (tmp_path / "c.wav").write_bytes((tmp_path / "c.wav").read_bytes()[:500])
    rows = [
        {"key": "a", "wav": "a.wav", "txt": "x", "extra": {"age": "OLD"}},
        {"key": "b", "wav": "b.wav", "txt": "x", "start": 0.0, "end": 0.2,
         "task": "<S2TCHAT> <TEXT2TOKEN>", "extra": {"age": "<OLD>", "speech_token": [1] * 50}},
        {"key": "c", "wav": "c.wav", "txt": "x"},
        {"key": "d", "txt": "x"},
        {"key": "e", "txt": "x", "task": "<NO> <SUCH>"},
        {"key": "f", "txt": "x", "task": "<TEXT2TEXT>"},
    ]  # fmt: skip
    raw = write_raw(tmp_path, [*rows, "{oops"])
    tally = inspect_data.scan("mine", ListSettings(str(raw)))
    assert (tally.utterances, tally.reply_tokens, len(tally.bad)) == (3, 50, 4)
    assert tally.heard_s == pytest.approx(0.7) and tally.lengths == {5: 1, 2: 1}
    assert tally.labels["age", "OLD"] == 2 and tally.labels["age", "-"] == 1
    assert tally.tasks["<TEXT2TEXT>"] == 1
    (tmp_path / "data.yaml").write_text("mine: {path: data.list}\n")
    argv = ["--config", str(tmp_path / "data.yaml"), "--stats", "--out", str(tmp_path / "out")]
    assert do_test_dataloader.main(argv) == 0
    told = capsys.readouterr().out
    assert "3 utterances, 0.7 s heard, 2.0 s of reply tokens, 4 bad" in told
    told = (tmp_path / "out/bad_members.txt").read_text().splitlines()
    assert len(told) == 4 and all(line.startswith("mine\t") for line in told)


def test_pictures_are_drawn_for_each_list(tmp_path: Path, capsys):
    assert do_test_dataloader.main(["--plot", "2", "--out", str(tmp_path)]) == 0
    names = {f"{form}_items.png" for form in ("raw", "shard", "combine")}
    assert {one.name for one in tmp_path.iterdir()} == names
    assert all(one.read_bytes().startswith(PNG) for one in tmp_path.iterdir())
