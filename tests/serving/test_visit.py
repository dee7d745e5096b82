"""Claims about a visit: lanes side by side, what is shown, what is kept, who gets which voice."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from osum_echat.errors import InputError
from osum_echat.serving import lanes, menu, strings, view
from osum_echat.serving.feedback import FeedbackBook
from osum_echat.serving.lanes import Lane, Voices
from osum_echat.serving.session import Limits, Refused
from osum_echat.serving.visit import MOST_TURNS, MOST_VISITS, Desk, Order, Visit
from tests.serving.canned import RATE_HZ, Canned
from tests.serving.sounds import wav


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    path.write_bytes(wav())
    return path


def desk(tmp_path: Path, *assistants: Canned) -> Desk:
    """A desk with a lane or two for each assistant."""
    models = {f"m{number}": assistant for number, assistant in enumerate(assistants)}
    book = FeedbackBook(tmp_path / "opinions" / "feedback.jsonl")
    return Desk(lanes.lanes_of(models), Voices(models.values(), ()), Limits(), book)


def run(at: Desk, visit: Visit, order: Order) -> list[dict]:
    """Every player state, as the page would get it."""
    return [json.loads(json.dumps(state)) for state in at.answer(visit, order)]


def test_a_model_of_both_kinds_makes_two_lanes_which_answer_side_by_side(tmp_path, clip):
    assistant = Canned()
    at = desk(tmp_path, assistant)
    visit = at.visit("tab")
    run(at, visit, Order(lanes=(0, 1), clip=clip))
    (turn,) = visit.turns
    assert [reply.manner for reply in turn.replies] == ["label", "natural"]
    assert [options["thinking"] for _, options in assistant.asked] == ["label", "natural"]
    assert all(reply.state == view.DONE for reply in turn.replies)


def test_lanes_that_differ_in_thought_only_answer_once_where_nothing_is_thought(tmp_path, clip):
    assistant = Canned()
    at = desk(tmp_path, assistant)
    run(at, at.visit("tab"), Order("s2s", lanes=(0, 1), clip=clip))
    assert len(assistant.asked) == 1 and assistant.asked[0][1]["thinking"] is None


def test_two_models_answer_even_without_a_thought(tmp_path, clip):
    at = desk(tmp_path, Canned("natural"), Canned("label"))
    visit = at.visit("tab")
    run(at, visit, Order("s2s", lanes=(0, 1), clip=clip))
    assert [reply.model for reply in visit.turns[0].replies] == ["m0", "m1"]


def test_the_player_gets_every_sample_once_and_in_order(tmp_path, clip):
    at = desk(tmp_path, Canned())
    visit = at.visit("tab")
    states = run(at, visit, Order(clip=clip))
    for earlier, later in zip(states, states[1:], strict=False):
        assert later["pieces"][: len(earlier["pieces"])] == earlier["pieces"]
    (key,) = states[-1]["ended"]
    assert key == visit.turns[0].replies[0].key
    sound = b"".join(base64.b64decode(piece["pcm"]) for piece in states[-1]["pieces"])
    samples = np.frombuffer(sound, "<i2")
    assert len(samples) == 8820 and {*samples[:4410]} == {16384} and {*samples[4410:]} == {-8192}
    assert {piece["rate"] for piece in states[-1]["pieces"]} == {RATE_HZ}


def test_a_reply_shows_words_labels_thought_pictures_and_timings(tmp_path, clip):
    at = desk(tmp_path, Canned())
    visit = at.visit("tab")
    run(at, visit, Order(clip=clip))
    (turn,) = json.loads(json.dumps(visit.shown()))
    (reply,) = turn["replies"]
    assert turn["name"] == "question.wav" and turn["seconds"] == 1.0 and len(turn["bars"]) == 96
    assert reply["heard"] == "my boss let me go" and reply["thought"].startswith("The user said")
    assert ["emotion", "sad"] in reply["labels"]
    assert "event" not in dict(reply["labels"])     # OTHER: nothing was heard beside the words
    assert max(reply["bars"]) == 1.0 and reply["mel"].startswith("data:image/png;base64,")
    assert dict(reply["timings"])["total"] == 0.5 and reply["seconds"] == 0.4


def test_an_understanding_answer_is_shown_without_its_tags_and_as_written(tmp_path, clip):
    at = desk(tmp_path, Canned(words=("i lost my kite<CHILD><MALE>",)))
    visit = at.visit("tab")
    run(at, visit, Order("listen", ("words", "age", "gender"), clip=clip))
    reply = visit.turns[0].replies[0]
    assert (reply.text, reply.raw) == ("i lost my kite", "i lost my kite<CHILD><MALE>")


def test_an_error_on_the_way_is_told_in_its_reply_and_harms_no_other(tmp_path, clip):
    at = desk(tmp_path, Canned("label", error=InputError("too odd")), Canned("label"))
    visit = at.visit("tab")
    run(at, visit, Order(lanes=(0, 1), clip=clip))
    bad, good = visit.turns[0].replies
    assert (bad.state, bad.problem, good.state) == (view.FAILED, "too odd", view.DONE)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (Order(), "no_clip"), (Order("tts"), "no_text"), (Order("listen", ()), "no_label"),
        (Order("tts", text="Hi.", lanes=()), "no_model"),
        (Order("tts", text="Hi.", lanes=(7,)), "no_model"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_answered_adds_no_turn(tmp_path, order, reason):
    at = desk(tmp_path, Canned())
    visit = at.visit("tab")
    with pytest.raises(Refused) as refusal:
        run(at, visit, order)
    assert refusal.value.reason == reason and not visit.turns
    for language in strings.LANGUAGES:
        assert strings.problem(refusal.value, language)


@pytest.mark.parametrize("order", [Order("dance"), Order("tts", text="Hi.", voice="/etc/passwd")])
def test_a_choice_that_is_not_offered_is_refused(tmp_path, order):
    at = desk(tmp_path, Canned())
    with pytest.raises(InputError, match="not one of"):
        run(at, at.visit("tab"), order)


def test_closing_the_page_stops_the_answer(tmp_path, clip):
    assistant = Canned()
    at = desk(tmp_path, assistant)
    states = at.answer(at.visit("tab"), Order(clip=clip))
    next(states), next(states)
    states.close()
    assert assistant.closed.is_set()


def test_a_visit_is_one_tabs_own_and_forgotten_when_it_leaves(tmp_path, clip):
    at = desk(tmp_path, Canned())
    run(at, at.visit("one"), Order(clip=clip))
    assert not at.visit("two").turns and len(at.visit("one").turns) == 1
    at.leave("one")
    assert not at.visit("one").turns


def test_visits_and_turns_do_not_grow_without_end(tmp_path):
    at = desk(tmp_path, Canned())
    first = at.visit("first")
    for number in range(MOST_VISITS):
        at.visit(str(number))
    assert at.visit("first") is not first
    visit = at.visit("long")
    for _ in range(MOST_TURNS + 3):
        run(at, visit, Order("t2t", text="Hi."))
    assert len(visit.turns) == len(visit.answered) == MOST_TURNS


def test_a_reset_forgets_turns_and_history(tmp_path, clip):
    assistant = Canned()
    at = desk(tmp_path, assistant)
    visit = at.visit("tab")
    run(at, visit, Order(clip=clip))
    visit.reset()
    run(at, visit, Order(clip=clip))
    assert len(visit.turns) == 1 and assistant.asked[-1][0].history == ()


def test_an_opinion_is_a_line_that_a_data_list_could_hold(tmp_path, clip):
    from osum_echat.records import Utterance

    at = desk(tmp_path, Canned())
    visit = at.visit("tab")
    run(at, visit, Order(clip=clip, seed=7))
    key = visit.turns[0].replies[0].key
    at.judge(visit, key, "incorrect", "too sad")
    book = tmp_path / "opinions" / "feedback.jsonl"
    (line,) = map(json.loads, book.read_text(encoding="utf-8").splitlines())
    assert (line["verdict"], line["note"], line["seed"]) == ("incorrect", "too sad", 7)
    assert visit.given == {key: "incorrect"}
    item = Utterance.from_json(line, "feedback", book.parent)
    assert item.user.audio.read_bytes() == clip.read_bytes()
    assert (item.user.text, item.labels.emotion) == ("my boss let me go", "SAD")
    samples, rate = soundfile.read(book.parent / line["extra"]["a_wav_path"])
    assert (len(samples), rate) == (8820, RATE_HZ)


def test_an_opinion_on_a_reply_that_is_gone_or_of_no_kind_is_refused(tmp_path, clip):
    at = desk(tmp_path, Canned())
    visit = at.visit("tab")
    with pytest.raises(InputError, match="no longer here"):
        at.judge(visit, "x-0", "correct", "")
    run(at, visit, Order(clip=clip))
    with pytest.raises(InputError, match="not one of correct, incorrect"):
        at.judge(visit, visit.turns[0].replies[0].key, "fine", "")
    assert not visit.given


def test_every_word_is_there_in_both_languages():
    for choice in menu.MENU:
        assert strings.word(f"task_{choice}", "en") != strings.word(f"task_{choice}", "zh")
    english, chinese = strings.words("en"), strings.words("zh")
    assert english.keys() == chinese.keys() and all(english.values()) and all(chinese.values())
    assert strings.preferred("fr-FR,zh-CN;q=0.8,en") == "zh" and strings.preferred("fr") == "en"


@pytest.mark.parametrize(
    ("ticked", "tag"),
    [
        (("words",), "<TRANSCRIBE>"), (("emotion", "age"), "<AGE> <EMOTION>"),
        (menu.HEARABLE, "<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION> <STYLE>"),
    ],
)  # fmt: skip
def test_what_is_ticked_makes_the_task(ticked, tag):
    assert menu.tag_of("listen", ticked) == tag


def test_each_kind_of_thought_that_a_model_is_told_is_a_lane():
    models = {"a": Canned("both"), "b": Canned("either")}
    made = lanes.lanes_of(models)
    assert [(lane.model, lane.thinking, lane.manner) for lane in made] == [
        ("a", "label", "label"), ("a", "natural", "natural"), ("b", None, "either"),
    ]  # fmt: skip
    assert isinstance(made[0], Lane)
