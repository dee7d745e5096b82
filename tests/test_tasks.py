"""Claims about tasks and thoughts: every name leads to one row; what is written is read back."""

import random
from dataclasses import asdict
from pathlib import Path

import pytest

from osum_echat import thinking
from osum_echat.errors import ConfigError, InputError
from osum_echat.records import Labels
from osum_echat.tasks import TASKS, Prompts, fix_labels, table, task_for, understanding_tag
from osum_echat.thinking import opening, read_labels, voice_tags

SHIPPED = Path(__file__).parents[1] / "conf" / "prompt_config.yaml"


@pytest.mark.parametrize(("tag", "name"), [
    ("TEXT2TOKEN", "tts"), ("<Speech2TEXTandTOKEN>", "s2s"), ("<S2TCHAT>  <TEXT2TOKEN> ", "s2s"),
    ("<S2TCHAT> <TEXT2TOKEN> <EMOTION>", "s2s"), ("<TEXT2TOKEN> <S2TCHAT>", "s2s"),
    *((one.tag, name) for name, one in TASKS.items() if one.tag), *((name, name) for name in TASKS),
])  # fmt: skip
def test_tags_and_short_names_lead_to_their_task(tag, name):
    assert task_for(tag).name == name


@pytest.mark.parametrize(("tag", "transcript", "labels"), [
    ("asr", True, ()), ("<TRANSCRIBE> <ALIGN>", True, ()), ("<TRANSCRIBE> <S2TCHAT>", True, ()),
    ("<CAPTION> <AUDIO>", False, ("event",)), ("<AGE> <GENDER>", False, ("age", "gender")),
    ("<TRANSCRIBE> <STYLE> <AGE> <GENDER>", True, ("style", "age", "gender")),
    ("understand", True, ("event", "age", "gender", "emotion")),
])  # fmt: skip
def test_an_understanding_tag_says_what_is_asked(tag, transcript, labels):
    task = task_for(tag)
    assert (task.name, task.transcript, task.labels) == ("understand", transcript, labels)


def test_a_tag_made_from_labels_asks_for_them_and_their_spelling_is_mended():
    assert understanding_tag(("emotion", "age")) == "<TRANSCRIBE> <AGE> <EMOTION>"
    assert understanding_tag(("emotion", "age"), transcript=False) == "<AGE> <EMOTION>"
    assert understanding_tag((), transcript=False) == "<TRANSCRIBE>"
    text = "hi <youth><Middle> <历史> <ANGRY> <FEMALE> <think> 3 < 4"
    assert fix_labels(text) == "hi <ADULT><ADULT> <有声书> <ANGER> <FEMALE> <think> 3 < 4"


@pytest.mark.parametrize(
    "tag", ["", "s3s", "<AGE> <AGE>", "<AGE> please", "<AGE> <TRANSCRIBE>", "<NOISE>"]
)
def test_an_unknown_task_is_refused_with_the_names(tag):
    with pytest.raises(InputError, match="not one of understand, s2t") as told:
        task_for(tag)
    assert ("did you mean 's2s'" in str(told.value)) == (tag == "s3s")


def test_the_table_of_tasks_has_a_row_each_with_what_it_needs():
    (spoken,) = [line for line in table() if line.startswith("s2s_think ")]
    assert len(table()) == len(TASKS) + 2 and "wav" in spoken and "extra.speech_token" in spoken


def test_every_shipped_pool_is_of_a_task_and_has_thirty_prompts_in_two_languages():
    pools = Prompts.from_file(SHIPPED).pools
    english, chinese = (Prompts.from_file(SHIPPED, name).pools for name in ("english", "chinese"))
    for tag, pool in pools.items():
        assert pool == english[tag] + chinese[tag] and len(set(pool)) == len(pool) >= 30, tag
        assert task_for(tag).name in ("understand", "s2t") and task_for(tag).tag == tag


def test_a_plain_list_belongs_to_every_language(tmp_path: Path):
    path = tmp_path / "prompts.yaml"
    path.write_text("<AGE>: [how old]\n")
    prompts = Prompts.from_file(path, "chinese")
    assert prompts.first("<AGE>") == prompts.draw("<AGE>", random.Random(0)) == "how old"
    assert prompts.draw("<GENDER>", random.Random(0)) is None
    for text, message in (("- a", "a mapping"), ("<AGE>: {english: []}", "<AGE> has no list")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Prompts.from_file(path)


# Thoughts

LABELS = Labels("CHILD", "MALE", "SAD", "COUGH", "SOFT")


def test_templates_and_kinds_of_thought_of_other_names_are_refused():
    with pytest.raises(ConfigError, match="not one of chinese, english"):
        thinking.template_named("french")
    with pytest.raises(ConfigError, match="choose label or natural"):
        opening("loud", thinking.ENGLISH)


def test_understanding_answers_are_read_by_value_and_by_order():
    assert read_labels("hi<CHILD><MALE>", ("age", "gender")) == Labels(age="CHILD", gender="MALE")
    assert read_labels("hi<male><child>", ("age", "gender")) == Labels(age="CHILD", gender="MALE")
    both = Labels(event="OTHER", emotion="OTHER")
    assert read_labels("<OTHER><OTHER>", ("event", "emotion")) == both
    assert read_labels("<日常口语><OLD>", ("style", "age")) == Labels(age="OLD", style="日常口语")
    assert read_labels("<OLD>", ("gender",)) == Labels()
    assert thinking.without_labels("hi<CHILD><MALE>") == "hi"


def test_the_tags_of_a_voice_stand_in_one_order_without_the_unknown_and_the_style():
    assert voice_tags(asdict(LABELS)) == "<CHILD><MALE><SAD><COUGH>"
    assert voice_tags({"event": "SIGH", "emotion": None, "age": "OLD"}) == "<OLD><SIGH>"
