"""Claims about the list of a batch job: every form of data, one number for each utterance."""

from pathlib import Path

import pytest

from osum_echat.data.sources import Dropped
from osum_echat.errors import DataError, InputError
from osum_echat.evaluation.lists import UtteranceList
from osum_echat.paths import FAKE_DATA
from osum_echat.records import Utterance
from tests.data.forms import raw_rows, write_lines, write_shard
from tests.data.world import write_world


def keys(utterances: UtteranceList) -> list[str]:
    every = [utterances.read(index) for index in range(len(utterances))]
    return [one.key for one in every if isinstance(one, Utterance)]


@pytest.mark.parametrize(
    "name", ["raw/data.list", "shard/shards_list.txt", "combine/combines_list.txt", "combine"]
)
def test_every_form_of_the_bundled_data_gives_the_same_utterances(name: str) -> None:
    utterances = UtteranceList(str(FAKE_DATA / name))
    assert len(utterances) == 10
    assert keys(utterances) == keys(UtteranceList(str(FAKE_DATA / "raw" / "data.list")))


def test_a_yaml_reads_each_entry_once_and_leaves_out_weight_0(tmp_path: Path) -> None:
    rows = raw_rows(tmp_path, "understand", 5)
    write_shard(tmp_path / "a.tar", rows[:3], tmp_path)
    write_lines(tmp_path / "a.list", rows[1:3])
    (tmp_path / "data.yaml").write_text(
        "tts: {path: tts.list, weight: 4}\n"
        "none: {path: absent.list, weight: 0}\n"
        "shard: {path: a.tar, weight: 0.5}\n"
    )
    utterances = UtteranceList(str(tmp_path / "data.yaml"))
    assert keys(utterances) == ["u0", "u1", "u2", "u3", "u4", "u0", "u1", "u2"]
    assert [entry["name"] for entry in utterances.identity()] == ["tts", "shard"]


def test_a_line_taken_out_of_a_combine_list_leaves_its_utterance_out(tmp_path: Path) -> None:
    rows = raw_rows(tmp_path, "s2t", 3)
    write_shard(tmp_path / "a.tar", rows, tmp_path)
    write_lines(tmp_path / "a.list", rows[1:])
    (tmp_path / "pairs.txt").write_text("a.list|a.tar\n")
    utterances = UtteranceList(str(tmp_path / "pairs.txt"))
    first = utterances.read(0)
    assert isinstance(first, Dropped) and first.file is None and keys(utterances) == ["u1", "u2"]


def test_a_limit_cuts_and_the_identity_is_that_of_the_content(tmp_path: Path) -> None:
    path = write_world(tmp_path, 5)["tts"]
    whole, cut = UtteranceList(str(path)), UtteranceList(str(path), 2)
    assert keys(cut) == ["u0", "u1"] and len(UtteranceList(str(path), 99)) == 5
    before = whole.identity()
    assert before == cut.identity()
    path.write_text(path.read_text().replace("Hello", "Hallo"))
    assert UtteranceList(str(path)).identity() != before


def test_what_cannot_be_listed_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        UtteranceList(str(tmp_path / "absent.list"))
    with pytest.raises(InputError, match="--limit 0: give 1 or more"):
        UtteranceList(str(FAKE_DATA / "raw"), 0)
    (tmp_path / "none.yaml").write_text("a: {path: a.list, weight: 0}\n")
    with pytest.raises(InputError, match="every entry has weight 0"):
        UtteranceList(str(tmp_path / "none.yaml"))
