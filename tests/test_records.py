"""Claims about records, tasks and thoughts: what lines hold, what tags mean, what is refused."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from osum_echat import thinking
from osum_echat.errors import ConfigError, DataError, InputError
from osum_echat.records import Labels, Turn, Utterance, read_turns
from osum_echat.tasks import TASKS, Prompts, fix_labels, table, task_for, understanding_tag
from osum_echat.thinking import opening, read_labels, voice_tags

ROOT = Path("lists")
LINE = {
    "key": "a1", "wav": "audio/a1.wav", "txt": "Poor thing.",
    "task": "<S2TCHAT> <TEXT2TOKEN> <THINK>",
    "wav_1": "audio/a0.wav", "txt_1": "Hello.",
    "extra": {
        "q_txt": "i lost my kite", "age": "<child>", "gender": "MALE", "q_emotion": "<SAD>",
        "caption": "<NONE>", "reply_emotion": "soft", "think_str": "I hear a sad child.",
        "speech_token": [5, 6], "speech_token_1": [1, 2], "speech_token_num": 1,
    },
}  # fmt: skip


def read(**changes: object) -> Utterance:
    return Utterance.from_json({**LINE, **changes}, "data.list (record 1)", ROOT)


def test_a_raw_line_becomes_an_utterance():
    assert read() == Utterance(
        key="a1", task="<S2TCHAT> <TEXT2TOKEN> <THINK>",
        user=Turn(ROOT / "audio/a1.wav", "i lost my kite", "Poor thing.", (5, 6)),
        labels=Labels("CHILD", "MALE", "SAD", None, "SOFT"), thought="I hear a sad child.",
        history=(Turn(ROOT / "audio/a0.wav", None, "Hello.", (1, 2)),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [({"extra": json.dumps(LINE["extra"])}, read()), ({"wav": None}, {"audio": None}),
     ({"wav": "/data/x.wav"}, {"audio": Path("/data/x.wav")}), ({"txt_1": "-1"}, {"history": ()}),
     ({"txt_\u00b2": "a digit to str.isdigit, and no number"}, read()),
     ({"start": 1, "end": 2.5}, {"segment_s": (1.0, 2.5)}),
     ({"extra": {"question": "who are you"}}, {"prompt": "who are you", "text": "who are you"}),
     ({"wav": None, "wav_1": None, "extra": {"speech_token_1": [1, 2], "speech_starts_1": [0, 1],
                                             "speech_starts": [0]}},  # clauses of a text to speak
      {"speech_starts": (0,), "history": (Turn(None, None, "Hello.", (1, 2), (0, 1)),)})],
)  # fmt: skip
def test_a_field_may_be_absent_or_of_another_form(change, found):
    one = read(**change)
    if isinstance(found, Utterance):
        assert one == found
    else:
        known = {**asdict(one.user), "history": one.history, "prompt": one.prompt}
        assert {name: known[name] for name in found} == found


@pytest.mark.parametrize(("change", "message"), [
    ({"key": None}, r"data.list \(record 1\): key is missing"),
    ({"extra": "{"}, "extra is not JSON"),
    ({"extra": '{"q_txt": "\\ud83d"}'}, "extra is not JSON.*surrogates"),
    ({"extra": {"speech_token": [1, -2]}}, "speech_token must be a list of whole numbers"),
    ({"wav_1": None}, "wav_1 is missing"), ({"start": 3, "end": 2}, "start 3 and end 2"),
])  # fmt: skip
def test_a_bad_field_is_named(change, message):
    with pytest.raises(DataError, match=message):
        read(**change)


def written(folder: Path, turns: object) -> Path:
    path = folder / "dialogue.json"
    path.write_text(turns if isinstance(turns, str) else json.dumps(turns))
    return path


def test_turns_keep_their_order_and_wavs_lie_beside_the_file(tmp_path):
    path = written(tmp_path, "\ufeff" + json.dumps([
        {"wav": "a.wav", "reply": "Hello."},
        {"text": "who are you?", "reply": "A model.", "reply_speech": [3, 4]},
    ]))  # fmt: skip
    assert read_turns(path) == (
        Turn(audio=tmp_path / "a.wav", reply_text="Hello."),
        Turn(text="who are you?", reply_text="A model.", reply_speech=(3, 4)),
    )


@pytest.mark.parametrize(("turns", "message"), [
    ("{", "not JSON"), ('[{"text": "\\ud83d", "reply": "b"}]', "surrogates"),
    ([{"wav": 5, "reply": "a"}], "turn 1: wav is 5, need a string"),
    ([{"wav": None, "text": "hi", "reply": "a"}], "turn 1: wav is null"),
    ([{"text": "hi", "reply": "a", "reply_speech": None}], "turn 1: reply_speech is null"),
    ({"reply": "Hello."}, "a dict; write a list of turns"),
    ([{"wav": "a.wav", "answer": "Hello."}], "turn 1: write an object with wav, text, reply"),
    ([{"reply": "Hello."}], "turn 1: give what the user said"),
    ([{"text": "hi", "reply": "a", "reply_speech": [0.5]}], "list of whole numbers"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_told(tmp_path, turns, message):
    with pytest.raises(InputError, match=message):
        read_turns(written(tmp_path, turns))


# Tasks and thoughts: every name leads to one row; what is written is read back

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
    assert thinking.without_labels("Hello,<SOFT>there 你<SOFT>好") == "Hello, there 你好"


def test_the_tags_of_a_voice_stand_in_one_order_without_the_unknown_and_the_style():
    assert voice_tags(asdict(LABELS)) == "<CHILD><MALE><SAD><COUGH>"
    assert voice_tags({"event": "SIGH", "emotion": None, "age": "OLD"}) == "<OLD><SIGH>"
