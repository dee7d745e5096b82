"""From the tiny world's corpus to raw lists that the package reads, and its text pieces."""
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from common_utils.tiny_world.lists import (
    FULL_TAG,
    HISTORY_TAG,
    Maker,
    Row,
    SpeechTokens,
    write_lists,
)
from common_utils.tiny_world.text_tokenizer import single_pieces, train
from common_utils.tiny_world.world import World, load_world, normalise
from osum_echat.records import Utterance
from osum_echat.tasks import task_for
from osum_echat.thinking import read_labels
from osum_echat.token2wav import voice
from osum_echat.vocab import Vocab

SIZE = 60
CODES = (7, 8, 9)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def spoken(raw: Row) -> Row:
    """A corpus object with the names of its sounds, as the maker adds them."""
    for number, turn in enumerate((*raw["turns"], raw)):
        turn |= {"wav": f"audio/{raw['key']}-{number}.wav",
                 "reply_wav": f"replies/{raw['key']}-{number}.wav"}
    return raw


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    rows = [spoken(exchange.to_json()) for exchange in world.exchanges("train", 0, SIZE)]
    (path / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    silent = (exchange.to_json() for exchange in world.exchanges("train", 9, 5))
    write_lists(path, Maker(world, Random(0), lambda wav: CODES), "train", silent, [
        {"txt": "I see, sir.", "style": "SOFT", "wav": "/replies/one.wav"}])
    return path


def rows_of(folder: Path, name: str) -> list[Row]:
    return [json.loads(line) for line in (folder / f"{name}.list").read_text().splitlines()]


@pytest.mark.parametrize("name", ["understand", "tts", "s2s", "s2t", "s2s_think", "s2t_think",
                                  "t2t", "history"])
def test_each_list_is_read_as_its_task(folder: Path, name: str) -> None:
    rows = rows_of(folder, name)
    wanted = "s2s_history" if name == "history" else name
    assert rows and {task_for(row["task"]).name for row in rows} == {wanted}
    for row in rows:
        utterance = Utterance.from_json(row, name, folder)
        task = task_for(utterance.task)
        assert utterance.user.reply_text
        assert utterance.user.reply_speech == (CODES if task.speaks else ())
        assert not task.hears or utterance.user.audio is not None
        assert not task.thinks or (utterance.thought or "").startswith("I hear a")
        assert (utterance.prompt is not None) == (task.name == "t2t")


def test_labels_of_understanding_rows_are_read_back(folder: Path) -> None:
    for row in rows_of(folder, "understand"):
        fields = task_for(row["task"]).labels
        labels = read_labels(row["txt"], fields)
        known = Utterance.from_json(row, "understand", folder).labels
        assert all(getattr(labels, field) == getattr(known, field) for field in fields)


def test_history_rows_hold_every_earlier_turn(folder: Path) -> None:
    dialogues = [row for row in map(json.loads, (folder / "exchanges.jsonl").open())
                 if row["turns"]]
    rows = rows_of(folder, "history")
    assert len(rows) == len(dialogues) and all(row["task"] == HISTORY_TAG for row in rows)
    for row, dialogue in zip(rows, dialogues, strict=True):
        history = Utterance.from_json(row, "history", folder).history
        assert [turn.reply_text for turn in history] == [
            turn["reply_text"] for turn in dialogue["turns"]]
        assert all(turn.reply_speech == CODES and turn.text for turn in history)


def test_written_questions_get_a_reply_by_words_alone(folder: Path, world: World) -> None:
    exchanges = {row["key"]: row for row in map(json.loads, (folder / "exchanges.jsonl").open())}
    for row in rows_of(folder, "t2t"):
        exchange = exchanges[row["key"].removesuffix("-t2t")]
        assert normalise(row["txt"]) in world.right_text_replies(exchange)
        assert normalise(row["extra"]["question"]) == normalise(exchange["user_text"])


def test_texts_to_speak_carry_their_style_unless_calm(folder: Path) -> None:
    rows = rows_of(folder, "tts")
    for row in rows:
        text, style = row["txt"], row["extra"]["reply_emotion"]
        assert text.startswith(f"<{style}>") or (style == "CALM" and not text.startswith("<"))
    assert rows[-1]["txt"] == "<SOFT>I see, sir."


def test_pretraining_also_reads_exchanges_that_were_never_spoken(folder: Path) -> None:
    rows = rows_of(folder, "pretrain")
    assert any("wav" not in row for row in rows)
    assert all("speech_token" not in row["extra"] for row in rows)
    assert {task_for(row["task"]).name for row in rows} == {
        "understand", "s2t", "s2t_think", "s2s", "s2s_think", "s2s_history", "t2t"}


def test_without_speech_tokens_the_lists_of_words_are_still_written(
        world: World, tmp_path: Path) -> None:
    row = spoken(next(world.exchanges("train", 0, 1)).to_json())
    (tmp_path / "exchanges.jsonl").write_text(json.dumps(row) + "\n")
    sizes = write_lists(tmp_path, Maker(world, Random(0)), "test")
    assert set(sizes) <= {"pretrain", "understand", "t2t", "s2t", "s2t_think"}
    assert {row["task"] for row in rows_of(tmp_path, "understand")} == {FULL_TAG}


def test_a_reply_is_turned_into_tokens_once(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def tokens(samples, name: str) -> list[int]:
        asked.append(name)
        return [*CODES]

    monkeypatch.setattr(voice, "SpeechTokenizer", lambda path: tokens)
    (tmp_path / "t.onnx").touch()
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16_000)
    for _ in range(2):
        assert SpeechTokens(tmp_path / "t.onnx", tmp_path)("a.wav") == CODES
    assert asked == [str(tmp_path / "a.wav")]


def test_marks_and_labels_are_single_pieces(tmp_path: Path) -> None:
    texts = ["I lost my red kite.", "I see, my friend. We will look for it together."] * 20
    train(texts, tmp_path, pieces=400)
    vocab = Vocab.from_directory(tmp_path)
    for piece in (*single_pieces(), "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(vocab.encode(piece)) == 1, piece
    assert vocab.unknown_label is not None
