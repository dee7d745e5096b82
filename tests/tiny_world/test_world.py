"""The words of the tiny world: fair splits, right replies, speakable sizes."""
from dataclasses import replace

import pytest

from common_utils.tiny_world.world import Exchange, World, load_world, normalise

SIZE = 1500


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def train(world: World) -> list[Exchange]:
    return list(world.exchanges("train", 0, SIZE))


@pytest.fixture(scope="module")
def held_out(world: World) -> list[Exchange]:
    return list(world.exchanges("test", 0, SIZE // 2))


def turns_of(exchange: Exchange) -> list:
    return [*exchange.turns, exchange]


def test_the_same_seed_gives_the_same_exchanges_and_a_larger_size_begins_alike(
        world: World, train: list[Exchange]) -> None:
    assert list(world.exchanges("train", 0, 40)) == train[:40]
    assert list(world.exchanges("train", 1, 40)) != train[:40]


def test_test_fillings_never_occur_in_training_but_their_words_do(
        train: list[Exchange], held_out: list[Exchange], world: World) -> None:
    pairs = [{item.filling for item in items if item.filling and " " in item.filling}
             for items in (train, held_out)]
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]
    every = [s for s in (*world.situations, *world.dialogues) if s.slot]
    known = {word for item in every for text in world.fillings_of(item, "train")
             for word in text.split()}
    assert {word for item in every for text in world.fillings_of(item, "test")
            for word in text.split()} <= known


def test_test_dialogues_pair_script_and_word_as_training_never_does(world: World) -> None:
    for script in world.dialogues:
        if script.slot:
            kept = set(world.fillings_of(script, "test"))
            assert kept and not kept & set(world.fillings_of(script, "train"))


def test_dialogues_without_a_slot_hold_out_wordings(
        train: list[Exchange], held_out: list[Exchange], world: World) -> None:
    loose = {script.name for script in world.dialogues if script.slot is None}
    said = [{(item.situation, *(turn.user_text for turn in turns_of(item)))
             for item in items if item.situation in loose and item.turns}
            for items in (train, held_out)]
    assert said[0] and said[1] and not said[0] & said[1]


def test_the_reply_taught_is_a_right_one(
        world: World, train: list[Exchange], held_out: list[Exchange]) -> None:
    for exchange in (*train, *held_out):
        raw = exchange.to_json()
        assert normalise(exchange.reply_text) in world.right_replies(raw)
        assert normalise(world.text_reply(raw)) in world.right_text_replies(raw)


def test_another_voice_needs_another_reply(world: World, train: list[Exchange]) -> None:
    singles = [e for e in train if e.kind == "single" and e.labels.event == "OTHER"]
    for exchange in singles[:200]:
        raw = exchange.to_json()
        aged = "OLD" if exchange.labels.age != "OLD" else "CHILD"
        other = replace(exchange, labels=replace(exchange.labels, age=aged)).to_json()
        assert not world.right_replies(raw) & world.right_replies(other)
        sounding = replace(exchange, labels=replace(exchange.labels, event="COUGH")).to_json()
        assert not world.right_replies(raw) & world.right_replies(sounding)


def test_the_last_turn_of_a_recall_needs_the_first(world: World, train: list[Exchange]) -> None:
    recalls = [e for e in train if e.turns and e.filling]
    assert recalls
    for one in recalls:
        filling, first = normalise(one.filling or ""), normalise(one.turns[0].user_text)
        assert filling in normalise(one.reply_text) and filling in first
        assert filling not in normalise(one.user_text)


def test_every_sentence_said_is_among_those_spoken_in_advance_by_one_speaker_a_dialogue(
        world: World, train: list[Exchange]) -> None:
    spoken = list(world.all_reply_sentences())
    assert len(spoken) == len(set(spoken)) < 2600
    known = set(spoken)
    for exchange in train:
        assert len({(turn.labels.age, turn.labels.gender) for turn in turns_of(exchange)}) == 1
        for turn in turns_of(exchange):
            assert turn.reply_text == " ".join(turn.reply_sentences)
            assert all((text, turn.reply_style) in known for text in turn.reply_sentences)
