"""Claims about a tab's chat: models side by side, what is shown, kept and judged."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from osum_echat.errors import InputError
from osum_echat.inference.reply import Done, Reply
from osum_echat.records import Labels
from osum_echat.serving import chat, page, session, strings
from osum_echat.serving.chat import MOST_SESSIONS, MOST_TURNS, ChatService, Form, Session
from osum_echat.serving.feedback import Feedback
from osum_echat.serving.session import HEARABLE, MENU, Limits, Refused, Voices
from tests.serving.canned import RATE_HZ, TIMINGS, Canned
from tests.serving.sounds import wav


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    path.write_bytes(wav())
    return path


def service(tmp_path: Path, *assistants: Canned) -> ChatService:
    """A service of each assistant, in each kind of thought."""
    models = {f"m{number}": assistant for number, assistant in enumerate(assistants)}
    feedback = Feedback(tmp_path / "given" / "feedback.jsonl")
    voices = Voices(models.values(), ())
    return ChatService(session.served(models), voices, Limits(), feedback, tmp_path)


def run(at: ChatService, tab: Session, form: Form) -> list[dict]:
    """Every player state, as the page would get it."""
    return [json.loads(json.dumps(state)) for state in at.answer(tab, form)]


def test_a_model_of_both_kinds_answers_twice_side_by_side(tmp_path, clip):
    assistant = Canned()
    at = service(tmp_path, assistant)
    tab = at.session("tab")
    run(at, tab, Form(models=(0, 1), clip=clip))
    (turn,) = tab.turns
    assert [answer.kind for answer in turn.answers.values()] == ["label", "natural"]
    assert [options["thinking"] for _, options in assistant.asked] == ["label", "natural"]
    assert all(answer.state == chat.DONE for answer in turn.answers.values())


def test_kinds_of_thought_answer_once_where_nothing_is_thought(tmp_path, clip):
    assistant = Canned()
    at = service(tmp_path, assistant)
    run(at, at.session("tab"), Form("s2s", models=(0, 1), clip=clip))
    assert len(assistant.asked) == 1 and assistant.asked[0][1]["thinking"] is None


def test_two_models_answer_even_without_a_thought(tmp_path, clip):
    at = service(tmp_path, Canned("natural"), Canned("label"))
    tab = at.session("tab")
    run(at, tab, Form("s2s", models=(0, 1), clip=clip))
    assert [answer.model for answer in tab.turns[0].answers.values()] == ["m0", "m1"]


def test_the_player_gets_every_sample_once_and_in_form(tmp_path, clip):
    at = service(tmp_path, Canned())
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
    at = service(tmp_path, Canned())
    tab = at.session("tab")
    run(at, tab, Form(clip=clip))
    shown = page._chat(tab, 0, "en")
    asked, sent, body, thought, sound, details = shown["value"]
    assert "question.wav · 1.0 s" in asked["content"] and sent["content"] == {"path": str(clip)}
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
    at = service(tmp_path, Canned(words=("<script>*a*</script>\n\n# b",)))
    tab = at.session("tab")
    run(at, tab, Form("t2t", text="<b>Who?"))
    asked, body, _ = page._chat(tab, 0, "en")["value"]
    assert "&lt;b&gt;Who?" in asked["content"]
    assert "&lt;script&gt;*a*&lt;/script&gt;<br><br># b" in body["content"]
    assert body["content"].startswith("<div>") and "\n" not in body["content"]


def test_a_conversation_can_be_saved(tmp_path, clip):
    at = service(tmp_path, Canned())
    tab = at.session("tab")
    run(at, tab, Form(clip=clip))
    (turn,) = json.loads(Path(page._saved(at, tab)).read_text(encoding="utf-8"))
    (reply,) = turn["replies"]
    assert turn["file"] == "question.wav" and reply["heard"] == "my boss let me go"
    assert reply["labels"]["emotion"] == "sad" and reply["timings"]["total"] == 0.5


def test_an_understanding_answer_is_shown_without_its_tags_and_as_written(tmp_path, clip):
    at = service(tmp_path, Canned(words=("i lost my kite<CHILD><MALE>",)))
    tab = at.session("tab")
    run(at, tab, Form("listen", ("words", "age", "gender"), clip=clip))
    reply = tab.turns[0].answers[0]
    assert (reply.text, reply.raw) == ("i lost my kite", "i lost my kite<CHILD><MALE>")


def test_a_reply_behind_the_words_heard_is_shown_by_itself(tmp_path):
    said = "my boss let me go"
    answer = chat.Answer("key", "model", "")
    answer.take(Done(Reply("<TRANSCRIBE> <S2TCHAT>", said, None, Labels(), f"{said}<开始回答>Oh.",
                           (), None, None, 1.0, TIMINGS)), tmp_path)  # fmt: skip
    assert (answer.heard, answer.text) == (said, "Oh.")


def test_an_error_on_the_way_is_told_in_its_reply_and_harms_no_other(tmp_path, clip):
    at = service(tmp_path, Canned("label", error=InputError("too odd")), Canned("label"))
    tab = at.session("tab")
    run(at, tab, Form(models=(0, 1), clip=clip))
    bad, good = tab.turns[0].answers.values()
    assert (bad.state, bad.problem, good.state) == (chat.FAILED, "too odd", chat.DONE)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(), "no_clip"), (Form("tts"), "no_text"), (Form("listen", ()), "no_label"),
        (Form("tts", text="Hi.", models=()), "no_model"),
        (Form("tts", text="Hi.", models=(7,)), "no_model"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_answered_adds_no_turn(tmp_path, form, reason):
    at = service(tmp_path, Canned())
    tab = at.session("tab")
    with pytest.raises(Refused) as refusal:
        run(at, tab, form)
    assert refusal.value.reason == reason and not tab.turns
    for language in strings.LANGUAGES:
        assert strings.problem(refusal.value, language)


@pytest.mark.parametrize("form", [Form("dance"), Form("tts", text="Hi.", voice="/etc/passwd")])
def test_a_choice_that_is_not_offered_is_refused(tmp_path, form):
    at = service(tmp_path, Canned())
    with pytest.raises(InputError, match="not one of"):
        run(at, at.session("tab"), form)


def test_closing_the_page_stops_the_answer(tmp_path, clip):
    assistant = Canned()
    at = service(tmp_path, assistant)
    states = at.answer(at.session("tab"), Form(clip=clip))
    next(states), next(states)
    states.close()
    assert assistant.closed.is_set()


def test_a_session_is_one_tabs_own_and_forgotten_when_it_leaves(tmp_path, clip):
    at = service(tmp_path, Canned())
    run(at, at.session("one"), Form(clip=clip))
    assert not at.session("two").turns and len(at.session("one").turns) == 1
    at.leave("one")
    assert not at.session("one").turns


def test_sessions_and_turns_do_not_grow_without_end(tmp_path):
    at = service(tmp_path, Canned())
    first = at.session("first")
    for number in range(MOST_SESSIONS):
        at.session(str(number))
    assert at.session("first") is not first
    tab = at.session("long")
    for _ in range(MOST_TURNS + 3):
        run(at, tab, Form("t2t", text="Hi."))
    assert len(tab.turns) == len(tab.replies) == MOST_TURNS


def test_a_reset_forgets_turns_and_history(tmp_path, clip):
    assistant = Canned()
    at = service(tmp_path, assistant)
    tab = at.session("tab")
    run(at, tab, Form(clip=clip))
    tab.reset()
    run(at, tab, Form(clip=clip))
    assert len(tab.turns) == 1 and assistant.asked[-1][0].history == ()


def test_an_opinion_is_a_line_that_a_data_list_could_hold(tmp_path, clip):
    from osum_echat.records import Utterance

    at = service(tmp_path, Canned())
    tab = at.session("tab")
    run(at, tab, Form(clip=clip, seed=7))
    key = tab.turns[0].answers[0].key
    at.judge(tab, key, "incorrect", "too sad")
    book = tmp_path / "given" / "feedback.jsonl"
    (line,) = map(json.loads, book.read_text(encoding="utf-8").splitlines())
    assert (line["verdict"], line["note"], line["seed"]) == ("incorrect", "too sad", 7)
    assert tab.verdicts == {key: "incorrect"}
    item = Utterance.from_json(line, "feedback", book.parent)
    assert item.user.audio.read_bytes() == clip.read_bytes()
    assert (item.user.text, item.labels.emotion) == ("my boss let me go", "SAD")
    samples, rate = soundfile.read(book.parent / line["extra"]["a_wav_path"])
    assert (len(samples), rate) == (8820, RATE_HZ)


def test_an_opinion_on_a_reply_that_is_gone_or_of_no_kind_is_refused(tmp_path, clip):
    at = service(tmp_path, Canned())
    tab = at.session("tab")
    with pytest.raises(InputError, match="no longer here"):
        at.judge(tab, "x-0", "correct", "")
    run(at, tab, Form(clip=clip))
    with pytest.raises(InputError, match="not one of correct, incorrect"):
        at.judge(tab, tab.turns[0].answers[0].key, "fine", "")
    assert not tab.verdicts


def test_every_word_is_there_in_both_languages():
    for choice in MENU:
        assert strings.word(f"task_{choice}", "en") != strings.word(f"task_{choice}", "zh")
    english, chinese = strings.words("en"), strings.words("zh")
    assert english.keys() == chinese.keys() and all(english.values()) and all(chinese.values())
    assert strings.preferred("fr-FR,zh-CN;q=0.8,en") == "zh" and strings.preferred("fr") == "en"


@pytest.mark.parametrize(
    ("ticked", "tag"),
    [
        (("words",), "<TRANSCRIBE>"), (("emotion", "age"), "<AGE> <EMOTION>"),
        (HEARABLE, "<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION> <STYLE>"),
    ],
)  # fmt: skip
def test_what_is_ticked_makes_the_task(ticked, tag):
    assert session.tag_of("listen", ticked) == tag


def test_a_model_is_offered_once_for_each_kind_of_thought_that_it_can_be_told():
    made = session.served({"a": Canned("both"), "b": Canned("either")})
    assert [(one.name, one.thinking, one.kind) for one in made] == [
        ("a", "label", "label"), ("a", "natural", "natural"), ("b", None, "either"),
    ]  # fmt: skip


def test_a_task_that_the_page_has_no_words_for_is_shown_by_its_name():
    assert strings.word("task_new", "zh") == "new"
