"""Claims about speech tokens of a list: those of the reply, the same however often one starts."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common_utils import extract_speech_tokens
from osum_echat import audio
from osum_echat.errors import CheckpointError, InputError
from osum_echat.paths import TINY
from osum_echat.records import Utterance
from osum_echat.token2wav.voice import SpeechTokenizer
from tests.common_utils.reading import read_all, rows_of, run_tool, write_noise, write_raw

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
    assert first == second == again == expected and len(expected) == 25
    assert len(part) == 10
    (chat,) = [one for one in read_all(tmp_path / "new.list")
               if isinstance(one, Utterance) and one.key == "chat"]  # fmt: skip
    assert chat.labels.age == "OLD" and chat.user.reply_speech == tuple(expected)


def test_what_needs_no_tokens_stays_in_the_list_and_those_there_can_be_kept(raw, tmp_path: Path):
    rows = [{"key": "heard", "wav": "user.wav", "txt": "x", "task": "<TRANSCRIBE>"},
            {"key": "read", "txt": "x", "task": "<TEXT2TEXT>"}]  # fmt: skip
    with raw.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert extract(raw, tmp_path / "new.list", "--keep").written == 6
    assert tokens_of(tmp_path / "new.list")[-3:] == [[1, 2, 3], None, None]


def test_a_clip_longer_than_the_tokenizer_hears_is_named_with_its_length(
    raw: Path, tmp_path: Path, monkeypatch
):
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


def test_a_list_in_another_folder_finds_its_audio(raw: Path, tmp_path: Path):
    extract(raw, tmp_path / "far/away/new.list")
    for one in read_all(tmp_path / "far/away/new.list"):
        assert isinstance(one, Utterance) and isinstance(one.user.audio, Path)
        assert one.user.audio.is_file()


def test_a_restart_listens_only_to_the_rest(raw: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(extract_speech_tokens, "PORTION", 1)
    heard: list[str] = []
    whole = extract_speech_tokens.Extraction.__call__

    def until_third(self, piece):
        heard.append(piece.first)
        if heard == [1, 2, 3]:
            raise KeyboardInterrupt
        return whole(self, piece)

    monkeypatch.setattr(extract_speech_tokens.Extraction, "__call__", until_third)
    with pytest.raises(KeyboardInterrupt):
        extract(raw, tmp_path / "new.list")
    assert not (tmp_path / "new.list").exists()
    extract(raw, tmp_path / "new.list")
    assert heard == [1, 2, 3, 3, 4, 5, 6]
    monkeypatch.undo()
    extract(raw, tmp_path / "at_once.list")
    assert tokens_of(tmp_path / "new.list") == tokens_of(tmp_path / "at_once.list")


def test_what_is_wrong_is_told_before_the_work(raw: Path, tmp_path: Path):
    with pytest.raises(InputError, match="this is the input"):
        extract(raw, raw)
    with pytest.raises(InputError, match="give --tokenizer"):
        extract(raw, tmp_path / "new.list", "--tokenizer", str(tmp_path))
    with pytest.raises(CheckpointError, match="speech tokenizer is needed"):
        extract(raw, tmp_path / "new.list", "--tokenizer", str(TOKENIZER.with_name("speaker.onnx")))
