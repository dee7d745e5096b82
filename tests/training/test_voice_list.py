"""Claims about lists read for their voices."""

import pytest

from common_utils.token2wav_recipe.voice_list import read_list
from osum_echat.errors import DataError


def written(folder, text):
    path = folder / "rows.list"
    path.write_text(text, encoding="utf-8")
    return path


def test_wavs_are_found_beside_the_list(tmp_path):
    rows = read_list(written(tmp_path, '{"key": "a", "wav": "x/a.wav", "speaker": 3}\n\n'))
    assert rows[0].wav == tmp_path / "x/a.wav"
    assert (rows[0].key, rows[0].voice) == ("a", "3")


@pytest.mark.parametrize(("text", "told"), [
    ("not json", "line 1: not JSON"), ('{"key": "a"}', "no `wav`"), ("\n", "holds no rows"),
])
def test_a_list_that_cannot_be_used_says_why(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read_list(written(tmp_path, text))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_list(tmp_path / "nowhere.list")
