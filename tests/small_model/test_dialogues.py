"""Claims about the thinker's rows: fitting replies, openings by label, lists to read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from common_utils.small_model import chats, dialogues, manner, thinker_lists
from common_utils.small_model.manner import ends_properly, is_fit, wrong_labels
from common_utils.small_model.texts import CHITCHAT_FILE, Conversation
from common_utils.small_model.topics import MOODS, filled, topic_of, topics
from common_utils.small_model.topics import words as topic_words
from osum_echat.records import Labels, Utterance

WOMAN = Labels("ADULT", "FEMALE", "SAD", "CRY")
SIZES = {"topics": 300, "chats": 40, "people": 10, "world": 40, "safety": 120, "wordless": 40,
         "dialogues": 20}  # fmt: skip
SAID = (
    "I really love my two dogs", "Dogs are the best friends", "What movies did you watch?",
    "That one with the cats was good", "Call me at 555 123 4567", "I have snow here today",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dialogues.Example]:
    parts = tmp_path_factory.mktemp("parts")
    talks = {str(number): {"messages": [[{"text": text}] for text in SAID[number % 3 :]]}
             for number in range(30)}  # fmt: skip
    place = parts / CHITCHAT_FILE
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(talks))
    return dialogues.examples(parts, 1, SIZES, Longest())


class Longest:
    """Ranks replies by their length; of a sign below 0 none is likely enough."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def lifts(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [self.sign * len(reply) ** 2 for _, reply in pairs]


@pytest.mark.parametrize("reply, wrong", [
    ("Please do not cry, little one.", ["little one"]), ("You sound so happy!", ["happy"]),
    ("What a lovely laugh!", ["laugh"]), ("Good day, sir.", ["sir"]),
    ("I hear how sad you are. Do not cry, my friend.", []), ("A sad film can do good.", []),
])  # fmt: skip
def test_labels_that_the_voice_does_not_have_are_found(reply, wrong):
    assert wrong_labels(reply, WOMAN) == wrong


@pytest.mark.parametrize("text, name, word", [
    ("Our old dog can hardly walk", "dog", "dog"),
    ("I spilled coffee on my shirt", "coffee", "coffee"),
    ("My grandmother died yesterday", "death", "died"),
    ("I got a new phone today", "phone", "phone"),
    ("hey how are you doing", "howareyou", None),
])  # fmt: skip
def test_a_message_is_about_what_it_names_first_but_for_general_and_strong_words(text, name, word):
    found = topic_of(text)
    assert found and (found.topic.name, found.word) == (name, word)


def test_every_act_is_found_by_its_words_and_every_reply_is_a_sentence_of_fitting_length():
    for topic in topics():
        for text in sum(topic.say.values(), ()) if topic.is_act else ():
            assert topic_of(text, (topic,)), f"{topic.name}: {text}"
        assert not set(topic.replies) - set(MOODS)
        for reply in sum(topic.replies.values(), ()):
            whole = filled(reply, "snow")
            assert whole and ends_properly(whole) and 3 <= len(whole.split()) <= 20, reply


def test_an_opening_follows_event_and_emotion():
    rng = Random(1)
    words = {manner.opening(Labels("ADULT", "MALE", "SAD", "CRY"), rng) for _ in range(200)}
    fitting = {*manner.openings()["event"]["CRY"], *manner.openings()["emotion"]["SAD"], ""}
    assert words <= fitting and len(words) > 8
    named = {manner.opening(Labels("CHILD", "MALE", "HAPPY", "OTHER"), rng) for _ in range(200)}
    assert any("little one" in each for each in named)


def test_messages_are_spelt_as_one_speaks():
    assert chats.spoken("im so happy lol :)") == "I'm so happy"
    assert chats.spoken("thats cool... u know??") == "That's cool. You know?"


def test_a_message_gets_the_reply_that_the_ranker_prefers_or_none():
    text = "Our old dog can hardly walk"
    topic = topic_of(text)
    asked = dialogues.Asked("one", "chats", text, topic, "plain", "NEUTRAL")
    known = {filled(reply, "dog") for reply in topic.topic.replies_for("plain")}
    options = [one for one in dialogues.cores(asked, Random(3)) if one in known]
    (best,) = dialogues.best_answered([asked], Random(3), Longest())
    assert len(options) > 2
    longest = max(options, key=len)
    assert best is None or best.reply.lower().endswith(longest.lower())
    assert [*dialogues.best_answered([asked], Random(3), Longest(-1.0))] == [None]


def test_a_listener_asks_back_and_tells_nothing_of_himself():
    said = ("I went bowling with friends", "Yeah bowling is fun. who won?",
            "My sister did", "I live near there too", "It is far away", "That is true Kevin")
    talks = [Conversation(str(number), tuple((text,) for text in said), False)
             for number in range(chats.KNOWN)]  # fmt: skip
    found = {(one.question, one.reply) for one in chats.exchanges(talks)}
    assert found == {(said[0], "Bowling is fun. Who won?"), (said[3], "It is far away.")}


def test_examples_fit_are_the_same_again_and_hold_nothing_private(found):
    for one in found:
        assert ends_properly(one.reply), one
        assert "555" not in one.question
        if one.source in ("topics", "chats", "people"):
            assert is_fit(one.question, one.reply, one.labels), one
    assert {one.source for one in found} == {*SIZES}


def test_whoever_may_hurt_himself_is_told_of_help(found):
    words = tuple(topic_words("safety")["selfharm"]["say"].lower().split(" | "))
    own = [one for one in found if one.source == "safety" and one.question.lower().endswith(words)]
    assert len(own) > 20
    for one in own:
        assert any(name in one.reply for name in ("988", "crisis", "emergency", "helpline")), one
        assert one.labels.style == "SOFT" and one.labels.event != "LAUGH"


def test_nothing_said_is_answered_by_nothing_heard(found):
    silent = [one for one in found if one.source == "wordless" and one.labels.emotion is None]
    assert silent and all(one.heard == "" for one in silent)
    assert all(re.search("hear|microphone|repeat", one.reply) for one in silent)


def test_lists_are_read_as_records_and_no_reply_crowds_them(found, tmp_path: Path):
    sizes = thinker_lists.write(found, tmp_path)
    assert sizes["s2s_think"] > sizes["s2t_think"] > 0 and sizes["history"] > 0
    for path in (tmp_path / "train").glob("*.list"):
        for line in path.read_text().splitlines():
            utterance = Utterance.from_json(json.loads(line), path.name, tmp_path)
            assert utterance.user.reply_text
    written = [one.reply for one in found if one.source not in ("safety", "wordless")]
    most = max(4, int(dialogues.MOST_ALIKE * len(found)))
    assert max(map(written.count, set(written))) <= most
