"""Claims about rules-v1: each documented rule, and that nobody takes it for a chat model."""

from pathlib import Path

import pytest

from osum_echat.evaluation.rubric import Exhibit
from osum_echat.evaluation.rules_judge import RulesJudge
from osum_echat.records import Labels

JUDGE = RulesJudge()
KITE = "I lost my kite in the park."


def score(reply: str, category: str = "emotion", emotion: str | None = "SAD", **labels) -> dict:
    return dict(JUDGE.judge(Exhibit("k", category, KITE, Labels(emotion="SAD", **labels),
                                    reply, emotion)).scores)  # fmt: skip


def test_its_name_says_that_it_is_no_model():
    assert JUDGE.name == "rules-v1" and "no model" in JUDGE.settings()["judge"]


def test_an_empty_reply_gets_nothing():
    assert set(score(" ").values()) == {0.0}


def test_a_reply_about_the_matter_is_more_relevant_than_one_about_none():
    assert score("Kites fly away in a park.")["relevance"] == 100
    assert score("Bananas are yellow.")["relevance"] == 50


@pytest.mark.parametrize("reply, expected", [
    ("Goodbye, little one.", 100), ("Goodbye.", 50), ("Goodbye, madam.", 10),
])  # fmt: skip
def test_a_cue_is_noticed_ignored_or_mistaken(reply, expected):
    assert score(reply, "age", age="CHILD")["perception"] == expected


def test_a_category_without_a_cue_of_its_own_tests_all_that_are_known():
    both = score("Bless you, I am sorry.", "multi", event="COUGH")["perception"]
    one = score("I am sorry.", "multi", event="COUGH")["perception"]
    assert (both, one) == (100, 75)


def test_sympathy_beats_cheer_towards_the_sad():
    kind, plain, cheerful = (score(reply)["empathy"] for reply in (
        "I am so sorry for you.", "The sky is blue.", "Congratulations!"))  # fmt: skip
    assert (kind, plain, cheerful) == (100, 40, 0)


@pytest.mark.parametrize("emotion, expected", [("SAD", 100), ("NEUTRAL", 75), ("HAPPY", 20)])
def test_delivery_is_read_from_the_table(emotion, expected):
    assert score("Oh no.", emotion=emotion)["delivery"] == expected


def test_without_sound_delivery_is_left_out_of_the_overall():
    judged = JUDGE.judge(Exhibit("k", "emotion", KITE, Labels(emotion="SAD"), "Oh no.", None))
    known = [value for value in judged.scores.values() if value is not None]
    assert judged.scores["delivery"] is None and judged.overall == sum(known) / 4


@pytest.mark.parametrize("reply, expected", [
    ("That is a pity, my friend.", 100), ("<SAD> That is a pity, my friend.", 60),
    ("Pity.", 70), ("That is a pity, my friend", 90), ("no no no no no no no no.", 74.3),
])  # fmt: skip
def test_naturalness_counts_markup_length_repetition_and_the_end(reply, expected):
    assert score(reply)["naturalness"] == pytest.approx(expected, abs=0.1)


def test_chinese_replies_are_judged_by_chinese_words():
    asked = Exhibit("k", "event", "我今天咳嗽得厉害", Labels(age="OLD", event="COUGH"),
                    "爷爷，您咳嗽了，请多喝水，去看看医生吧。", None)  # fmt: skip
    scores = JUDGE.judge(asked).scores
    assert scores["perception"] == 100 and scores["relevance"] > 50


def test_verdicts_are_the_same_every_time():
    asked = [Exhibit(str(number), "emotion", KITE, Labels(), "Oh no.", None) for number in range(3)]
    assert JUDGE(asked, Path("unused")) == JUDGE(asked, Path("unused"))
