"""Claims about parsing a growing reply: pieces come early, and add up to what the whole says."""

import random

import pytest

from osum_echat import thinking
from osum_echat.inference import reply
from osum_echat.inference.reply import Detokenizer, DialogueParser, Heard, LabelsFound, TextPiece
from osum_echat.records import Labels
from osum_echat.tasks import task_for
from osum_echat.thinking import CHINESE, ENGLISH, TEMPLATES, LabelTemplate
from osum_echat.vocab import Vocab

THOUGHT = (
    "<think>The user said: i lost my kite, age: <CHILD>, gender: <MALE>, emotion: <SAD>, "
    "sound event: <CRY>, reply emotion: <SOFT><think end>"
)
PARTS = ("<think>", "<think end>", "</think>", "< /think end>", "<thi", "<", ">", " ", "\n", "a b",
         "<SOFT>", "<CHILD>", "The user said: ", ", age: ", ", emotion: <SAD>", "用户说的话是:你好",
         ",年龄为:<OLD>", "好。", "<&&>", "think end>", "nd")  # fmt: skip


class Bytes:
    """A tokenizer of single bytes: most of its ids are no whole character."""

    def encode(self, text: str) -> list[int]:
        return [0] if text == "<|im_end|>" else [1 + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(number - 1 for number in ids if number).decode(errors="replace")


def read(parser, text: str, cuts: list[int]) -> list:
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += parser.push(text[start:end])
    return events + parser.push("", is_last=True)


def told(parser: DialogueParser) -> tuple[str | None, str | None, Labels, str]:
    return parser.thought, parser.heard, parser.labels, parser.text


def parsed(text: str, template: LabelTemplate = ENGLISH) -> tuple[str | None, Labels, str]:
    """Heard words, labels and answer of a text pushed at once."""
    parser = DialogueParser(template)
    read(parser, text, [])
    return told(parser)[1:]


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
        parser, whole = DialogueParser(template), DialogueParser(template)
        events = read(parser, text, cuts)
        read(whole, text, [])
        thought, _, labels, answer = told(whole)
        assert joined(events, reply.ThoughtPiece) == (thought or ""), (text, cuts)
        assert joined(events, TextPiece) == answer, (text, cuts)
        assert told(parser) == told(whole), (text, cuts)
        assert [one.labels for one in events if isinstance(one, LabelsFound)] == (
            [labels] if labels != Labels() else []
        )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("labels", [
    Labels("CHILD", "MALE", "SAD", "COUGH", "SOFT"), Labels(), Labels(emotion="SAD", style="开心"),
])  # fmt: skip
def test_a_label_thought_is_read_back_as_it_was_written(template, labels):
    words = "so, my age: none of yours"
    text = thinking.label_thought(template, words, labels) + "Oh dear."
    assert parsed(text, template) == (words, labels, "Oh dear.")


def test_thoughts_of_other_kinds_and_none_are_borne_and_a_leading_tag_is_the_style():
    natural = thinking.natural_thought("I hear a sad child.")
    assert parsed(natural + "Oh dear.") == parsed("Oh dear.") == (None, Labels(), "Oh dear.")
    assert parsed(" Oh dear. ") == (None, Labels(), "Oh dear.")
    assert parsed("<think>The user said: hello, age: <OLD>, gender: <FEM") == (
        "hello", Labels(age="OLD"), "")  # fmt: skip
    for end in ("<think end>", "</think end>", "</think>"):
        assert parsed(f"<think>hm{end}Yes.") == (None, Labels(), "Yes.")
    text = thinking.label_thought(CHINESE, "你好", Labels(style="开心")) + "<悲伤>你好呀"
    assert parsed(text, CHINESE) == ("你好", Labels(style="开心"), "你好呀")
    assert parsed("<悲伤>你好呀") == (None, Labels(style="悲伤"), "你好呀")
    assert parsed("<CHILD>") == (None, Labels(), "<CHILD>")


def test_the_pieces_of_an_understanding_answer_are_the_whole_text():
    task = task_for("understand")
    for text, cuts in texts(500):
        parser = reply.UnderstandingParser(task, ("age", "emotion"))
        events, found = read(parser, text, cuts), thinking.read_labels(text, task.labels)
        assert joined(events, TextPiece) == parser.text == text.strip()
        assert parser.heard == thinking.without_labels(text)
        assert parser.labels == Labels(age=found.age, emotion=found.emotion)


def test_a_reply_behind_the_words_was_not_heard():
    parser = reply.UnderstandingParser(task_for("<TRANSCRIBE> <S2TCHAT>"), ())
    events = parser.push("你好<开始回答>你也好", is_last=True)
    assert parser.heard == "你好" and events[-1] == Heard("你好")


def test_things_are_told_in_the_order_in_which_they_are_known():
    parser, told = DialogueParser(ENGLISH), []
    for character in THOUGHT + "Oh dear.":
        told += [(type(event), event) for event in parser.push(character)]
    kinds = [kind for kind, _ in told]
    first_text = kinds.index(TextPiece)
    assert set(kinds[: kinds.index(Heard)]) == {reply.ThoughtPiece}
    assert kinds[kinds.index(Heard) : first_text] == [Heard, LabelsFound]
    assert told[kinds.index(Heard)][1] == Heard("i lost my kite")
    assert set(kinds[first_text:]) == {TextPiece}
    assert len(kinds) - first_text == len("Oh dear.") - 1  # a space waits for what follows it


@pytest.mark.parametrize("text", ["Oh dear.", "<think>Somebody laughs.<think end>Oh dear.",
                                  THOUGHT.replace("i lost my kite", "") + "Oh dear."])
def test_what_was_heard_before_the_answer_is_told_first(text: str):
    """That there are no words, too: who answers words alone must know it before the reply."""
    parser = DialogueParser(ENGLISH, "", Labels(event="LAUGH"))
    told = read(parser, text, [*range(len(text))])
    assert told[:2] == [LabelsFound(Labels(event="LAUGH")), Heard("")]
    assert sum(isinstance(event, Heard) for event in told) == 1
    assert [type(event) for event in told].index(TextPiece) > 1
    assert (parser.heard, parser.labels.event, parser.labels.age) == ("", "LAUGH", None)
    assert parser.labels.style == ("SOFT" if "SOFT" in text else None)


@pytest.mark.parametrize("text", ["naïve 你好 😀!", "", "plain", "\ufffd kept \ufffd"])
def test_no_half_characters_are_given(text: str):
    vocab = Vocab(Bytes(), 300, 10)
    characters = Detokenizer(vocab)
    pieces = [characters.push([number]) for number in vocab.encode(text)]
    assert "".join([*pieces, characters.push((), is_last=True)]) == text
    assert all(len(piece) <= 2 for piece in pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    characters = Detokenizer(vocab)         # bytes that never make one are told at the end
    assert [characters.push([number]) for number in (98, 1 + 0xE4, 1 + 0xBD)] == ["a", "", ""]
    assert characters.push((), is_last=True) == "\ufffd"
