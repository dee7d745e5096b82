"""Claims about reading along: pieces come early, and together they are what the whole text says."""

import random

import pytest

from osum_echat.inference.reply import Heard, LabelsFound, TextPiece, ThoughtPiece
from osum_echat.inference.reply_parser import Answering, Detokeniser, Reciting, Understanding
from osum_echat.records import Labels
from osum_echat.tasks import task_for
from osum_echat.thinking import CHINESE, ENGLISH, read_labels, split, without_labels
from osum_echat.vocab import Vocab

THOUGHT = (
    "<think>The user said: i lost my kite, age: <CHILD>, gender: <MALE>, emotion: <SAD>, "
    "sound event: <CRY>, reply emotion: <SOFT><think end>"
)
PARTS = (
    "<think>", "<think end>", "</think>", "< /think end>", "<thi", "<", ">", " ", "\n", "a b",
    "<SOFT>", "<CHILD>", "The user said: ", ", age: ", ", emotion: <SAD>", "用户说的话是:你好",
    ",年龄为:<OLD>", "好。", "<&&>", "think end>", "nd",
)  # fmt: skip


class Bytes:
    """A tokenizer of single bytes: most of its ids are no whole character."""

    def encode(self, text: str) -> list[int]:
        return [0] if text == "<|im_end|>" else [1 + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(number - 1 for number in ids if number).decode(errors="replace")


def read(reading, text: str, cuts: list[int]) -> list:
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += reading.push(text[start:end])
    return events + reading.finish()


def joined(events: list, kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def texts(count: int):
    """Texts of likely and unlikely parts, each with places to cut it."""
    draw = random.Random(1)
    for _ in range(count):
        text = "".join(draw.choices(PARTS, k=draw.randrange(9)))
        if draw.random() < 0.7:
            text = "<think>" + text
        yield text, sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(8)))


@pytest.mark.parametrize("template", [CHINESE, ENGLISH])
def test_the_pieces_of_an_answer_are_what_the_whole_text_says(template):
    for text, cuts in texts(3000):
        reading = Answering(template)
        events, wanted = read(reading, text, cuts), split(text, template)
        assert joined(events, ThoughtPiece) == (wanted.thought or ""), (text, cuts)
        assert joined(events, TextPiece) == wanted.answer, (text, cuts)
        assert (reading.thought, reading.heard) == (wanted.thought, wanted.heard), (text, cuts)
        assert (reading.labels, reading.text) == (wanted.labels, wanted.answer), (text, cuts)
        assert [one.labels for one in events if isinstance(one, LabelsFound)] == (
            [wanted.labels] if wanted.labels != Labels() else []
        )


def test_the_pieces_of_an_understanding_answer_are_the_whole_text():
    task = task_for("understand")
    for text, cuts in texts(500):
        reading = Understanding(task, ("age", "emotion"))
        events, found = read(reading, text, cuts), read_labels(text, task.labels)
        assert joined(events, TextPiece) == reading.text == text.strip()
        assert reading.heard == without_labels(text)
        assert reading.labels == Labels(age=found.age, emotion=found.emotion)


def test_things_are_told_in_the_order_in_which_they_are_known():
    reading, told = Answering(ENGLISH), []
    for character in THOUGHT + "Oh dear.":
        told += [(type(event), event) for event in reading.push(character)]
    kinds = [kind for kind, _ in told]
    first_text = kinds.index(TextPiece)
    assert set(kinds[: kinds.index(Heard)]) == {ThoughtPiece}
    assert kinds[kinds.index(Heard) : first_text] == [Heard, LabelsFound]
    assert told[kinds.index(Heard)][1] == Heard("i lost my kite")
    assert set(kinds[first_text:]) == {TextPiece}
    assert len(kinds) - first_text == len("Oh dear.") - 1  # a space waits for what follows it


def test_a_label_in_a_thought_does_not_hold_it_up():
    reading = Answering(ENGLISH)
    assert joined(reading.push("<think>a <CHILD> cries"), ThoughtPiece) == "a <CHILD> cries"
    assert joined(reading.push(" <t"), ThoughtPiece) == ""
    assert joined(reading.push("ea"), ThoughtPiece) == " <tea"


def test_given_words_are_told_before_they_are_spoken():
    reading = Reciting("<SOFT>I am sorry.")
    assert reading.push("") == [TextPiece("I am sorry.")]
    assert reading.push("") == reading.finish() == [] and reading.text == "I am sorry."


@pytest.mark.parametrize("text", ["naïve 你好 😀!", "", "plain", "\ufffd kept \ufffd"])
def test_no_half_characters_are_given(text: str):
    vocab = Vocab(Bytes(), 300, 10)
    characters = Detokeniser(vocab)
    pieces = [characters.push([number]) for number in vocab.encode(text)]
    assert "".join([*pieces, characters.rest()]) == text
    assert all(len(piece) <= 2 for piece in pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_make_a_character_are_told_at_the_end():
    characters = Detokeniser(Vocab(Bytes(), 300, 10))
    assert [characters.push([number]) for number in (98, 1 + 0xE4, 1 + 0xBD)] == ["a", "", ""]
    assert characters.rest() == "\ufffd"
