"""Claims about tasks: every name leads to one row of the table."""

import pytest

from osum_echat.errors import InputError
from osum_echat.tasks import TASKS, fix_labels, table, task_for, understanding_tag


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("<S2TCHAT>", "s2t"), ("<S2TCHAT_FAKE>", "s2t_fake"), ("<S2TCHAT> <THINKER>", "s2t_think"),
        ("<TEXT2TOKEN>", "tts"), ("TEXT2TOKEN", "tts"),
        ("<TEXT2TOKEN> <STREAMING>", "tts_streaming"),
        ("<S2TCHAT> <TEXT2TOKEN>", "s2s"), ("<Speech2TEXTandTOKEN>", "s2s"),
        ("<S2TCHAT> <TEXT2TOKEN> <EMOTION>", "s2s"), ("<S2TCHAT>  <TEXT2TOKEN> ", "s2s"),
        ("<S2TCHAT> <TEXT2TOKEN> <STREAMING>", "s2s_streaming"),
        ("<S2TCHAT> <TEXT2TOKEN> <THINK>", "s2s_think"),
        ("<S2TCHAT> <TEXT2TOKEN> <HISTORY>", "s2s_history"), ("<TEXT2TEXT>", "t2t"),
        *((name, name) for name in TASKS),
    ],
)  # fmt: skip
def test_tags_and_short_names_lead_to_their_task(tag, name):
    assert task_for(tag).name == name


@pytest.mark.parametrize(
    ("tag", "transcript", "labels"),
    [
        ("asr", True, ()),
        ("<TRANSCRIBE>", True, ()),
        ("<TRANSCRIBE> <ALIGN>", True, ()),
        ("<TRANSCRIBE> <PUNCTUATION>", True, ()),
        ("<TRANSCRIBE> <S2TCHAT>", True, ()),
        ("<CAPTION> <AUDIO>", False, ("event",)),
        ("<AGE> <GENDER>", False, ("age", "gender")),
        ("<TRANSCRIBE> <STYLE> <AGE> <GENDER>", True, ("style", "age", "gender")),
        ("<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION> <STYLE>", True,
         ("event", "age", "gender", "emotion", "style")),
        ("understand", True, ("event", "age", "gender", "emotion")),
    ],
)  # fmt: skip
def test_an_understanding_tag_says_what_is_asked(tag, transcript, labels):
    task = task_for(tag)
    assert (task.name, task.transcript, task.labels) == ("understand", transcript, labels)
    assert not task.joint and not task.speaks


def test_a_tag_made_from_labels_asks_for_these_labels():
    assert understanding_tag(("emotion", "age")) == "<TRANSCRIBE> <AGE> <EMOTION>"
    assert understanding_tag(("emotion", "age"), transcript=False) == "<AGE> <EMOTION>"
    assert understanding_tag((), transcript=False) == "<TRANSCRIBE>"


@pytest.mark.parametrize(
    "tag", ["", "s3s", "<AGE> <AGE>", "<AGE> please", "<AGE> <TRANSCRIBE>", "<NOISE>"]
)
def test_an_unknown_task_is_refused_with_the_names(tag):
    with pytest.raises(InputError, match="not one of understand, s2t"):
        task_for(tag)


def test_spelling_of_labels_inside_a_text_is_mended():
    text = "hi <youth><Middle> <历史> <ANGRY> <FEMALE> <think> 3 < 4"
    assert fix_labels(text) == "hi <ADULT><ADULT> <有声书> <ANGER> <FEMALE> <think> 3 < 4"


def test_the_table_of_tasks_has_a_row_each_and_what_it_needs():
    first, *lines, labels = table()
    assert first.split()[0] == "task" and len(lines) == len(TASKS)
    (spoken,) = [line for line in lines if line.startswith("s2s_think ")]
    assert "wav" in spoken and "extra.speech_token" in spoken and "think_str" in spoken
    assert "<EMOTION>" in labels
