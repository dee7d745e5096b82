"""Claims about looking at a corpus: what is shown is what a training would get, in every form."""

from pathlib import Path

import pytest

import do_test_dataloader
from common_utils import inspect_data
from osum_echat.data.loader import ListSettings
from osum_echat.paths import TINY
from tests.common_utils.reading import write_noise, write_raw
from tests.data.world import write_world
from tests.training.experiment import write_experiment

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
    config.write_text("bad: {path: bad/data.list}\n")
    argv = ["--config", str(config), "--stats", "--out", str(tmp_path / "out")]
    assert do_test_dataloader.main(argv) == 2


def test_the_statistics_count_hours_labels_and_bad_members(tmp_path: Path):
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
    lines = list(inspect_data.report({"mine": ListSettings(str(raw))}, tmp_path / "out"))
    assert any("3 utterances, 0.7 s heard, 2.0 s of reply tokens, 4 bad" in one for one in lines)
    told = (tmp_path / "out/bad_members.txt").read_text().splitlines()
    assert len(told) == 4 and all(line.startswith("mine\t") for line in told)
    assert (tmp_path / "out/lengths.png").read_bytes().startswith(PNG)


def test_pictures_are_drawn_for_each_list(tmp_path: Path, capsys):
    assert do_test_dataloader.main(["--plot", "2", "--out", str(tmp_path)]) == 0
    names = {f"{form}_items.png" for form in ("raw", "shard", "combine")}
    assert {one.name for one in tmp_path.iterdir()} == names
    assert all(one.read_bytes().startswith(PNG) for one in tmp_path.iterdir())
