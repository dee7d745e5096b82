"""Claims about thoughts: what is written can be read back, and damage is borne."""

from dataclasses import asdict

import pytest

from osum_echat.errors import ConfigError
from osum_echat.records import Labels
from osum_echat.thinking import (
    CHINESE,
    ENGLISH,
    TEMPLATES,
    label_thought,
    natural_thought,
    opening,
    read_labels,
    template_named,
    voice_tags,
    without_labels,
)

LABELS = Labels("CHILD", "MALE", "SAD", "COUGH", "SOFT")


def test_the_published_template_is_reproduced():
    assert label_thought(CHINESE, "你好", Labels("ADULT", None, "NEUTRAL", "OTHER", "中立")) == (
        "<think>用户说的话是:你好,年龄为:<ADULT>,性别为:<&&>,情感为:<NEUTRAL>,"
        "声音事件为:<OTHER>,推测使用的回复情感为:<中立>,"
        "我应该综合用户的语义和副语言信息给出专业且对应的回答<think end>"
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_thought_of_either_kind_begins_with_its_opening(template):
    assert label_thought(template, "hello", LABELS).startswith(opening("label", template))
    assert natural_thought("I hear you").startswith(opening("natural", template))


def test_understanding_answers_are_read_by_value_and_by_order():
    assert read_labels("hi<CHILD><MALE>", ("age", "gender")) == Labels(age="CHILD", gender="MALE")
    assert read_labels("hi<male><child>", ("age", "gender")) == Labels(age="CHILD", gender="MALE")
    both = Labels(event="OTHER", emotion="OTHER")
    assert read_labels("<OTHER><OTHER>", ("event", "emotion")) == both
    assert read_labels("<日常口语><OLD>", ("style", "age")) == Labels(age="OLD", style="日常口语")
    assert read_labels("<OLD>", ("gender",)) == Labels()
    assert without_labels("hi<CHILD><MALE>") == "hi"


def test_the_tags_of_a_voice_stand_in_one_order_without_the_unknown_and_the_style():
    assert voice_tags(asdict(LABELS)) == "<CHILD><MALE><SAD><COUGH>"
    assert voice_tags({"event": "SIGH", "emotion": None, "age": "OLD"}) == "<OLD><SIGH>"


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="not one of chinese, english"):
        template_named("french")
    with pytest.raises(ConfigError, match="choose label or natural"):
        opening("loud", ENGLISH)
