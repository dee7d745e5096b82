"""Claims about a tab's chat: models side by side, what is shown, kept and judged."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from osum_echat.errors import InputError
from osum_echat.inference import reply as replies
from osum_echat.records import Utterance
from osum_echat.serving import chat, page, session, strings
from osum_echat.serving.chat import MOST_SESSIONS, MOST_TURNS, ChatService, Form, Session
from osum_echat.serving.feedback import Feedback
from osum_echat.serving.session import MENU, Conversation, Limits, Question, Refused, Voices
from tests.serving.canned import HEARD, RATE_HZ, WORDS, Canned, wav


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    path.write_bytes(wav())
    return path


def service(tmp_path: Path, *assistants: Canned) -> ChatService:
    """A service of each assistant, in each kind of thought."""
    models = {f"m{number}": assistant for number, assistant in enumerate(assistants or [Canned()])}
    feedback = Feedback(tmp_path / "given" / "feedback.jsonl")
    voices = Voices(models.values(), ())
    return ChatService(session.served(models), voices, Limits(), feedback, tmp_path)


def run(at: ChatService, tab: Session, form: Form) -> list[dict]:
    """Every player state, as the page would get it."""
    return [json.loads(json.dumps(state)) for state in at.answer(tab, form)]


def asked(tmp_path: Path, form: Form, *assistants: Canned) -> tuple[ChatService, Session]:
    """A service and a tab of it that asked once."""
    at = service(tmp_path, *assistants)
    run(at, at.session("tab"), form)
    return at, at.session("tab")


def test_a_model_of_both_kinds_answers_twice_side_by_side_where_there_is_a_thought(tmp_path, clip):
    assistant = Canned()
    _, tab = asked(tmp_path, Form(models=(0, 1), clip=clip), assistant)
    answers = tab.turns[0].answers.values()
    assert [answer.kind for answer in answers] == ["label", "natural"]
    assert [options["thinking"] for _, options in assistant.asked] == ["label", "natural"]
    assert {answer.state for answer in answers} == {chat.DONE}
    form = Form("s2s", models=(0, 1), clip=clip)
    asked(tmp_path, form, assistant)
    assert len(assistant.asked) == 3 and assistant.asked[2][1]["thinking"] is None
    _, tab = asked(tmp_path, form, Canned("natural"), Canned("label"))
    assert [answer.model for answer in tab.turns[0].answers.values()] == ["m0", "m1"]


def test_the_player_gets_every_sample_once_and_in_form(tmp_path, clip):
    at = service(tmp_path)
    tab = at.session("tab")
    states = run(at, tab, Form(clip=clip))
    for earlier, later in zip(states, states[1:], strict=False):
        assert later["pieces"][: len(earlier["pieces"])] == earlier["pieces"]
    (key,) = states[-1]["ended"]
    assert key == tab.turns[0].answers[0].key
    sound = b"".join(base64.b64decode(piece["pcm"]) for piece in states[-1]["pieces"])
    samples = np.frombuffer(sound, "<i2")
    assert len(samples) == 8820 and {*samples[:4410]} == {16384} and {*samples[4410:]} == {-8192}
    assert {piece["rate"] for piece in states[-1]["pieces"]} == {RATE_HZ}


def test_a_chat_shows_words_labels_folded_thought_sound_and_timings(tmp_path, clip):
    _, tab = asked(tmp_path, Form(clip=clip))
    question, sent, body, thought, sound, details = page._chat(tab, 0, "en")["value"]
    assert "question.wav · 1.0 s" in question["content"] and sent["content"] == {"path": str(clip)}
    assert "my boss let me go" in body["content"] and "osum-done" in body["content"]
    assert "<small>emotion</small> sad" in body["content"]
    assert "osum-event" not in body["content"]      # OTHER: nothing was heard beside the words
    assert thought["metadata"] == {"title": "Thought", "status": "done"}
    samples, rate = soundfile.read(sound["content"]["path"])
    assert (len(samples), rate) == (8820, RATE_HZ)
    assert details["content"].count("data:image/png;base64,") == 2
    assert "whole reply <b>0.50 s</b>" in details["content"]
    assert page._chat(tab, 1, "en")["value"] == []
    assert "思考" in page._chat(tab, 0, "zh")["value"][3]["metadata"]["title"]


def test_words_of_people_and_models_are_neither_html_nor_markdown(tmp_path):
    evil = Canned(words=("<script>*a*</script>\n\n# b",))
    _, tab = asked(tmp_path, Form("t2t", text="<b>Who?"), evil)
    question, body, _ = page._chat(tab, 0, "en")["value"]
    assert "&lt;b&gt;Who?" in question["content"]
    assert "&lt;script&gt;*a*&lt;/script&gt;<br><br># b" in body["content"]
    assert body["content"].startswith("<div>") and "\n" not in body["content"]


def test_a_conversation_can_be_saved(tmp_path, clip):
    (turn,) = json.loads(Path(page._saved(*asked(tmp_path, Form(clip=clip)))).read_text("utf-8"))
    (reply,) = turn["replies"]
    assert turn["file"] == "question.wav" and reply["heard"] == "my boss let me go"
    assert reply["labels"]["emotion"] == "sad" and reply["timings"]["total"] == 0.5
    saved = page._saved(*asked(tmp_path, Form("t2t", text="half a smile \ud83d")))
    assert json.loads(Path(saved).read_text("utf-8"))[0]["text"] == "half a smile ?"


def test_an_understanding_answer_is_shown_without_its_tags_and_as_written(tmp_path, clip):
    form = Form("listen", ("words", "age", "gender"), clip=clip)
    assistant = Canned(words=("i lost my kite<CHILD><MALE>",))
    _, tab = asked(tmp_path, form, assistant)
    assert assistant.asked[0][0].task == "<TRANSCRIBE> <AGE> <GENDER>"
    reply = tab.turns[0].answers[0]
    assert (reply.text, reply.raw) == ("i lost my kite", "i lost my kite<CHILD><MALE>")


def test_an_error_on_the_way_is_told_in_its_reply_and_harms_no_other(tmp_path, clip):
    broken = Canned("label", error=InputError("too odd"))
    _, tab = asked(tmp_path, Form(models=(0, 1), clip=clip), broken, Canned("label"))
    bad, good = tab.turns[0].answers.values()
    assert (bad.state, bad.problem, good.state) == (chat.FAILED, "too odd", chat.DONE)


@pytest.mark.parametrize(("form", "reason"), [
    (Form(), "no_clip"), (Form("tts"), "no_text"), (Form("listen", ()), "no_label"),
    (Form("tts", text="Hi.", models=()), "no_model"),
    (Form("tts", text="Hi.", models=(7,)), "no_model"),
    (Form("dance"), None), (Form("tts", text="Hi.", voice="/etc/passwd"), None),
])  # fmt: skip
def test_a_form_that_cannot_be_answered_or_was_not_offered_adds_no_turn(tmp_path, form, reason):
    at = service(tmp_path)
    with pytest.raises(InputError, match=None if reason else "not one of") as refusal:
        run(at, at.session("tab"), form)
    assert getattr(refusal.value, "reason", None) == reason and not at.session("tab").turns
    assert all(strings.problem(refusal.value, language) for language in strings.LANGUAGES)


def test_closing_the_page_stops_the_answer(tmp_path, clip):
    assistant = Canned()
    at = service(tmp_path, assistant)
    states = at.answer(at.session("tab"), Form(clip=clip))
    next(states), next(states)
    states.close()
    assert assistant.closed.is_set()


def test_a_session_is_one_tabs_own_and_forgotten_when_it_leaves_or_is_reset(tmp_path, clip):
    assistant = Canned()
    at, tab = asked(tmp_path, Form(clip=clip), assistant)
    assert not at.session("two").turns and len(tab.turns) == 1
    tab.reset()
    run(at, tab, Form(clip=clip))
    assert len(tab.turns) == 1 and assistant.asked[-1][0].history == ()
    at.leave("tab")
    assert not at.session("tab").turns


def test_sessions_and_turns_do_not_grow_without_end(tmp_path):
    at = service(tmp_path)
    first = at.session("first")
    for number in range(MOST_SESSIONS):
        at.session(str(number))
    assert at.session("first") is not first
    tab = at.session("long")
    for _ in range(MOST_TURNS + 3):
        run(at, tab, Form("t2t", text="Hi."))
    assert len(tab.turns) == MOST_TURNS


def test_an_opinion_is_a_line_that_a_data_list_could_hold(tmp_path, clip):
    at, tab = asked(tmp_path, Form(clip=clip, seed=7))
    answer = tab.turns[0].answers[0]
    at.judge(answer, "incorrect", "too sad")
    book = tmp_path / "given" / "feedback.jsonl"
    (line,) = map(json.loads, book.read_text(encoding="utf-8").splitlines())
    assert (line["verdict"], line["note"], line["seed"]) == ("incorrect", "too sad", 7)
    item = Utterance.from_json(line, "feedback", book.parent)
    assert item.user.audio.read_bytes() == clip.read_bytes()
    assert (item.user.text, item.labels.emotion) == ("my boss let me go", "SAD")
    samples, rate = soundfile.read(book.parent / line["extra"]["a_wav_path"])
    assert (len(samples), rate) == (8820, RATE_HZ)
    for gone, verdict, told in ((None, "correct", "no longer here"),
                                (answer, "fine", "not one of correct, incorrect")):
        with pytest.raises(InputError, match=told):
            at.judge(gone, verdict, "")
    assert answer.verdict == "incorrect"


def test_every_word_is_there_in_both_languages():
    for choice in MENU:
        assert strings.word(f"task_{choice}", "en") != strings.word(f"task_{choice}", "zh")
    english, chinese = strings.words("en"), strings.words("zh")
    assert english.keys() == chinese.keys() and all(english.values()) and all(chinese.values())
    assert strings.preferred("fr-FR,zh-CN;q=0.8,en") == "zh" and strings.preferred("fr") == "en"
    assert strings.word("task_new", "zh") == "new"      # a task that the page has no words for


# One conversation: history, limits, interrupt.

SPOKEN = Question("s2s_think", wav())
ANSWER = "Please do not cry, my friend."


def talked(*questions: Question, words: tuple[str, ...] = WORDS, limits: Limits | None = None):
    """A conversation after these questions, and the assistant that answered them."""
    conversation, assistant = Conversation(limits), Canned(words=words)
    for question in questions:
        list(conversation.ask(assistant, question))
    return conversation, assistant


def test_a_second_turn_knows_the_first_and_no_more_are_kept_than_may_be():
    questions = [SPOKEN, *(Question("s2s_think", wav(seconds)) for seconds in (0.5, 0.6))]
    conversation, assistant = talked(*questions, limits=Limits(turns=2))
    first, second, _ = (asked for asked, _ in assistant.asked)
    assert first.history == ()
    assert [turn.audio for turn in conversation.history] == [one.clip for one in questions[1:]]
    (turn,) = second.history
    assert (turn.audio, turn.text, turn.reply_text) == (SPOKEN.clip, HEARD, ANSWER)
    assert turn.reply_speech == (1, 2, 3) and talked(SPOKEN, words=())[0].history == ()


@pytest.mark.parametrize(("question", "turns"), [
    (Question("asr", wav()), 1), (Question("<TRANSCRIBE> <AGE>", wav()), 1),
    (Question("tts", text="Hello."), 1), (Question("t2t", text="Who are you?"), 1),
    (Question("s2s", wav(), remembers=False), 2),
])  # fmt: skip
def test_what_is_no_spoken_dialogue_neither_gets_nor_makes_history(question, turns):
    conversation, assistant = talked(SPOKEN, question)
    assert assistant.asked[-1][0].history == () and len(conversation.history) == turns


def test_an_interrupt_ends_its_own_reply_and_keeps_what_was_said():
    conversation, assistant = Conversation(), Canned()
    conversation.interrupt()
    events = conversation.ask(assistant, SPOKEN)
    while not isinstance(next(events), replies.TextPiece):
        pass
    conversation.interrupt()
    (done,) = events
    assert done.reply.stopped_by == "interrupt" and done.reply.text == "Please "
    assert conversation.history[0].reply_text == "Please "
    assert list(conversation.ask(assistant, SPOKEN))[-1].reply.text == ANSWER


def test_a_reply_under_way_is_forgotten_after_a_new_question_or_a_reset_not_a_refused_one():
    conversation = Conversation()
    early = conversation.ask(Canned(), SPOKEN)
    next(early)
    late = conversation.ask(Canned(words=("late",)), SPOKEN)
    next(late)
    assert list(early)[-1].reply.stopped_by == "interrupt"
    with pytest.raises(Refused):
        conversation.ask(Canned(), Question("s2s"))
    assert list(late)[-1].reply.stopped_by == "end"
    assert [turn.reply_text for turn in conversation.history] == ["late"]
    reset = conversation.ask(Canned(), SPOKEN)
    next(reset)
    conversation.reset()
    assert list(reset) and conversation.history == ()


def test_the_text_is_the_prompt_of_a_task_that_listens_and_the_words_of_one_that_reads():
    _, assistant = talked(Question("asr", wav(), text=" How old? "),
                          Question("tts", text=" Hello. "), Question("t2t", text=" Who? "))
    (_, listening), (speaking, spoken), (writing, _) = assistant.asked
    assert listening["prompt"] == "How old?" and spoken["prompt"] is None
    assert speaking.user.reply_text == "Hello." and writing.user.text == "Who?"


@pytest.mark.parametrize(("question", "reason", "message"), [
    (Question("s2s"), "no_clip", "Record something"),
    (Question("tts", text="  "), "no_text", "Write a text"),
    (Question("tts", text="a" * 1001), "long_text", "1001 characters"),
    (Question("s2s", wav(31, 8_000), "a.wav"), "long_clip", r"a\.wav lasts 31\.0 s; at most 30 s"),
    (Question("s2s", bytes(26 * session.MEGABYTE), "b.wav"), "large_clip", "26 MB; at most 25 MB"),
    (Question("s2s", b"no sound" * 99, "c.wav"), "bad_clip", r"c\.wav: not audio"),
    (Question("s2s", b"", "d.wav"), "bad_clip", r"d\.wav: the file is empty"),
    (Question("s2s", wav()[:9_000], "e.wav"), "bad_clip", r"e\.wav: .*cut short"),
])  # fmt: skip
def test_a_question_over_the_limits_is_refused_at_once(question, reason, message):
    assistant = Canned()
    with pytest.raises(Refused, match=message) as refusal:
        Conversation().ask(assistant, question)
    assert refusal.value.reason == reason and not assistant.asked
    assert list(Conversation().ask(assistant, Question("s2s", wav(30, 8_000))))
