"""Claims about reading lists."""

import json
from pathlib import Path

import pytest

from osum_echat.data.sources import Dropped, RawSource
from osum_echat.errors import DataError
from tests.data.world import write_list, write_world


def test_any_line_can_be_read_again(tmp_path: Path) -> None:
    source = RawSource("s2s", write_world(tmp_path)["s2s"])
    assert len(source) == 8
    keys = [next(iter(source.read(unit))).key for unit in (3, 0, 3)]
    assert keys == ["u3", "u0", "u3"]


def test_audio_is_found_beside_the_list(tmp_path: Path) -> None:
    source = RawSource("s2s", write_world(tmp_path)["s2s"])
    assert next(source.read(1)).user.audio == tmp_path / "audio" / "u1.wav"


def test_a_task_in_the_settings_overrides_the_tags(tmp_path: Path) -> None:
    source = RawSource("s2s", write_world(tmp_path)["s2s"], task="<S2TCHAT>")
    assert next(source.read(0)).task == "<S2TCHAT>"


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{oops", "not JSON"), ("[1]", "not an object"), ('{"key": "a"}', "bad record"),
     ('{"key": "a", "txt": 5}', "bad record")],
)  # fmt: skip
def test_a_bad_line_is_dropped_with_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.list"
    path.write_text(json.dumps({"key": "good", "txt": "x"}) + "\n\n" + line + "\n")
    source = RawSource("a", path)
    assert len(source) == 2  # the blank line is none
    dropped = next(source.read(1))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == reason
    assert "record 2" in dropped.detail


def test_a_missing_list_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.list: no such file"):
        RawSource("gone", tmp_path / "gone.list")


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        RawSource("empty", write_list(tmp_path / "empty.list", []))
