"""Claims about one conversation: history, limits, interrupt."""

import pytest

from osum_echat.errors import InputError
from osum_echat.inference.reply import AudioPiece, Done, TextPiece
from osum_echat.serving.session import MEGABYTE, Conversation, Limits, Question, Refused
from tests.serving.canned import HEARD, Canned
from tests.serving.sounds import wav

SPOKEN = Question("s2s_think", wav())
ANSWER = "Please do not cry, my friend."


def test_the_events_of_the_assistant_come_through_in_order():
    events = list(Conversation().ask(Canned(), SPOKEN))
    assert isinstance(events[-1], Done)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == ANSWER
    assert sum(isinstance(event, AudioPiece) for event in events) == 2


def test_a_second_turn_knows_the_first():
    conversation, assistant = Conversation(), Canned()
    list(conversation.ask(assistant, SPOKEN))
    list(conversation.ask(assistant, SPOKEN))
    (first, _), (second, _) = assistant.asked
    assert first.history == ()
    (turn,) = second.history
    assert (turn.audio, turn.text, turn.reply_text) == (SPOKEN.clip, HEARD, ANSWER)
    assert turn.reply_speech == (1, 2, 3)


def test_only_the_last_turns_are_kept():
    conversation = Conversation(Limits(turns=2))
    for word in "abcd":
        list(conversation.ask(Canned(words=(word,)), SPOKEN))
    assert [turn.reply_text for turn in conversation.history] == ["c", "d"]


@pytest.mark.parametrize(
    "question",
    [
        Question("asr", wav()),
        Question("<TRANSCRIBE> <AGE>", wav()),
        Question("tts", text="Hello."),
        Question("t2t", text="Who are you?"),
    ],
)
def test_what_is_no_spoken_dialogue_neither_gets_nor_makes_history(question):
    conversation, assistant = Conversation(), Canned()
    list(conversation.ask(assistant, SPOKEN))
    list(conversation.ask(assistant, question))
    assert assistant.asked[-1][0].history == ()
    assert len(conversation.history) == 1


def test_a_question_may_leave_the_history_out():
    conversation, assistant = Conversation(), Canned()
    list(conversation.ask(assistant, SPOKEN))
    list(conversation.ask(assistant, Question("s2s", wav(), remembers=False)))
    assert assistant.asked[-1][0].history == () and len(conversation.history) == 2


def test_an_interrupt_ends_the_reply_and_keeps_what_was_said():
    conversation, assistant = Conversation(), Canned()
    events = conversation.ask(assistant, SPOKEN)
    while not isinstance(next(events), TextPiece):
        pass
    conversation.interrupt()
    (done,) = events
    assert done.reply.stopped_by == "interrupt" and done.reply.text == "Please "
    assert conversation.history[0].reply_text == "Please "


def test_an_interrupt_does_not_reach_the_next_reply():
    conversation = Conversation()
    conversation.interrupt()
    assert list(conversation.ask(Canned(), SPOKEN))[-1].reply.text == ANSWER


def test_a_new_question_stops_the_reply_under_way_which_is_forgotten():
    conversation = Conversation()
    early = conversation.ask(Canned(), SPOKEN)
    next(early)
    list(conversation.ask(Canned(words=("late",)), SPOKEN))
    assert list(early)[-1].reply.stopped_by == "interrupt"
    assert [turn.reply_text for turn in conversation.history] == ["late"]


def test_a_reply_under_way_at_a_reset_is_not_remembered():
    conversation = Conversation()
    events = conversation.ask(Canned(), SPOKEN)
    next(events)
    conversation.reset()
    list(events)
    assert conversation.history == ()


def test_closing_the_iterator_closes_the_assistants():
    assistant = Canned()
    events = Conversation().ask(assistant, SPOKEN)
    next(events)
    events.close()
    assert assistant.closed.is_set()


def test_a_reply_without_words_is_not_remembered():
    conversation = Conversation()
    list(conversation.ask(Canned(words=()), SPOKEN))
    assert conversation.history == ()


def test_the_text_is_the_prompt_of_a_task_that_listens_and_the_words_of_one_that_reads():
    assistant = Canned()
    conversation = Conversation()
    list(conversation.ask(assistant, Question("asr", wav(), text=" How old? ")))
    list(conversation.ask(assistant, Question("tts", text=" Hello. ")))
    list(conversation.ask(assistant, Question("t2t", text=" Who? ")))
    (_, listening), (speaking, spoken), (writing, _) = assistant.asked
    assert listening["prompt"] == "How old?" and spoken["prompt"] is None
    assert speaking.user.reply_text == "Hello." and writing.user.text == "Who?"


@pytest.mark.parametrize(
    ("question", "reason", "message"),
    [
        (Question("s2s"), "no_clip", "record something"),
        (Question("tts", text="  "), "no_text", "write a text"),
        (Question("tts", text="a" * 1001), "long_text", "1001 characters"),
        (Question("s2s", wav(31, 8_000), "a.wav"), "long_clip", r"a\.wav: 31\.0 s; at most 30 s"),
        (Question("s2s", bytes(26 * MEGABYTE), "b.wav"), "large_clip", "26 MB; at most 25 MB"),
        (Question("s2s", b"no sound" * 99, "c.wav"), "bad_clip", r"c\.wav: not audio"),
        (Question("s2s", b"", "d.wav"), "bad_clip", r"d\.wav: the file is empty"),
        (Question("s2s", wav()[:9_000], "e.wav"), "bad_clip", r"e\.wav: .*cut short"),
    ],
)
def test_a_question_over_the_limits_is_refused_at_once(question, reason, message):
    assistant = Canned()
    with pytest.raises(Refused, match=message) as refusal:
        Conversation().ask(assistant, question)
    assert refusal.value.reason == reason and not assistant.asked


def test_thirty_seconds_are_not_too_long():
    assert list(Conversation().ask(Canned(), Question("s2s", wav(30, 8_000))))


def test_a_refused_question_leaves_the_reply_under_way_alone():
    conversation = Conversation()
    events = conversation.ask(Canned(), SPOKEN)
    next(events)
    with pytest.raises(Refused):
        conversation.ask(Canned(), Question("s2s"))
    assert list(events)[-1].reply.stopped_by == "end"


def test_an_unknown_task_is_an_input_error():
    with pytest.raises(InputError, match="s2x"):
        Conversation().ask(Canned(), Question("s2x", wav()))
