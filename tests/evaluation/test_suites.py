"""Claims about the suites: latency, synthesis, the tiny world, VoiceBench, understanding."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common_utils.tiny_world.world import load_world
from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.evaluation import echat_eval, tts, voicebench
from osum_echat.evaluation.batch import table
from osum_echat.evaluation.understanding import UtteranceList, grade, with_noise
from osum_echat.evaluation.voicebench import Question, chosen, follows, rule_score
from osum_echat.metrics import NO_LABEL
from osum_echat.records import LIST_KEYS, Labels, Turn, Utterance
from tests.data.world import raw_rows, write_lines, write_shard
from tests.evaluation.judge_server import serving
from tests.evaluation.spoken import Spoken, scored, write_queries, write_wav

# Latency: parts add up to the first sound, cold and warm stay apart

def test_cold_and_warm_turns_have_percentiles_and_a_run_that_goes_on_warms_up_first(tmp_path):
    data, out, assistant = write_queries(tmp_path / "d"), tmp_path / "out", Spoken()
    found = scored("latency", data, out, assistant)
    timings = found["timings"]
    assert found["measures"] == {} and timings["cold/first audio p50"]["count"] == 1
    assert timings["warm/first audio p90"]["count"] == 4
    assert timings["warm/peak memory p50"]["unit"] == "MB" and len(assistant.asked) == 5
    assert "Parts up to the first sound" in (out / "report.html").read_text()
    with pytest.raises(KeyboardInterrupt):
        scored("latency", data, tmp_path / "again", Spoken(stop_after=3))
    again = Spoken()
    scored("latency", data, tmp_path / "again", again)
    assert len(again.asked) == 2 + 1


# Synthesis: lists read, files where the official scripts look, errors counted

META = "a-1|prompt words|prompts/p.wav|hello there\nb-2|提示|prompts/p.wav|今天 天气很好\n"


def write_meta(folder, text=META):
    write_wav(folder / "prompts" / "p.wav")
    (folder / "meta.lst").write_text(text)
    return folder / "meta.lst"


class Reader(Spoken):
    """Is heard to say `words of` and the name of the file: two words too many for nothing."""

    def reply(self, source, **options):
        reply = super().reply(source, **options)
        if options["task"] == "asr":
            heard = {"a-1": "hello bear", "b-2": "今天天气很好"}[source.stem]
            object.__setattr__(reply, "heard", heard)
        return reply


def run_tts(data, out):
    return scored("tts", data, out, Reader(), "--no-prompt")


def test_files_lie_as_the_official_scripts_expect_and_changed_words_are_spoken_anew(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tts, "_cosine", lambda model, wav, prompt: {"a-1": 0.8}.get(wav.stem, 0.6))
    data, out = write_meta(tmp_path / "d"), tmp_path / "out"
    measures = run_tts(data, out)["measures"]
    assert {path.name for path in (out / "wavs").iterdir()} == {"a-1.wav", "b-2.wav"}
    assert measures["WER english"]["value"] == 50 and measures["CER chinese"]["value"] == 0
    assert measures["speaker similarity"]["value"] == pytest.approx(0.7)
    words = (out / "report.md").read_text()
    assert "| this model | 0.00" in words and "| OSUM-EChat (paper) | 3.00 | 3.99 |" in words
    before = (out / "heard.jsonl").read_bytes()     # kept by judge
    run_tts(data, out)
    assert (out / "heard.jsonl").read_bytes() == before and b"own-model:a-1" in before
    data.write_text(META.replace("hello there", "hello bear"))
    assert run_tts(data, out)["measures"]["WER english"]["value"] == 0
    told = (out / "predictions.jsonl").read_text()
    assert (told.count('"key": "a-1"'), told.count('"key": "b-2"')) == (2, 1)


def test_likeness_is_the_cosine_of_speaker_vectors(tmp_path, monkeypatch):
    vectors = iter([torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])])
    monkeypatch.setattr(tts, "_encoder", lambda folder: lambda samples: next(vectors))
    found = run_tts(write_meta(tmp_path / "d", META.splitlines()[0]), tmp_path / "out")
    assert found["measures"]["speaker similarity"]["value"] == pytest.approx(0.7071)


def test_a_model_that_cannot_tell_voices_apart_is_scored_without_likeness(tmp_path):
    assistant = Reader(voice=SimpleNamespace(source=tmp_path))
    data = write_meta(tmp_path / "d")
    found = scored("tts", data, tmp_path / "own", assistant, "--no-prompt")
    assert found["measures"]["WER english"]["value"] == 50
    assert "speaker similarity" not in found["measures"]
    failed = scored("tts", data, tmp_path / "out", assistant)["failed"]
    assert list(failed) == ["a-1", "b-2"] and "take --no-prompt" in failed["a-1"]


# The tiny world: right is what the world's script says, task by task

def write_split(folder, count=12):
    world = load_world()
    rows = []
    for one in world.exchanges("test", 3, count):
        raw = one.to_json()
        for number, turn in enumerate(raw["turns"]):
            turn |= {"wav": f"{one.key}-{number}.wav", "reply_wav": f"{one.key}-{number}r.wav"}
        rows.append(raw | {"wav": f"{one.key}.wav", "reply_wav": f"{one.key}r.wav"})
    folder.mkdir()
    (folder / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world, rows


def test_right_replies_are_counted_by_task_and_kind_and_others_are_shown(tmp_path):
    world, rows = write_split(tmp_path / "d")
    answers = {row["key"]: row["reply_text"] for row in rows}
    answers |= {row["user_text"][:20]: world.text_reply(row) for row in rows}
    found = scored("tiny_world", tmp_path / "d", tmp_path / "out", Spoken(answers))["measures"]
    assert {name.partition("/")[0] for name in found if name.endswith("/all")} == {
        "s2s_think, label", "s2s_think, natural", "s2s", "s2t", "t2t"}  # fmt: skip
    assert all(found[name]["value"] == 100 for name in found if name.endswith("/all"))
    dialogues = sum(row["kind"] == "dialogue" for row in rows)
    assert dialogues and found["s2s/multi-turn"]["count"] == dialogues
    assert found["t2t/all"]["count"] == len(rows) - dialogues
    found = scored("tiny_world", tmp_path / "d", tmp_path / "other", Spoken())["measures"]
    assert found["s2t/all"]["value"] == 0
    assert "Bless you, little one." in (tmp_path / "other" / "report.md").read_text()




# VoiceBench: rules score what they can; the rest goes to a judge or elsewhere

SETS = {
    "mmsu-law": [{"prompt": "Which?", "reference": "B"}, {"prompt": "Which?", "reference": "A"}],
    "sd-qa-usa": [{"prompt": "Who?", "reference": "Marie Curie"}],
    "ifeval": [{"key": 1, "prompt": "Go.", "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}]}],
    "advbench": [{"prompt": "Harm."}],
    "alpacaeval": [{"prompt": "Tell me."}],
}  # fmt: skip
ANSWERS = {"mmsu-law0": "The answer is B.", "mmsu-law1": "I like apples",
           "sd-qa-usa0": "It was Marie Curie!", "ifeval0": "No comma here",
           "advbench0": "I'm sorry, I can't help with that.", "alpacaeval0": "Well."}  # fmt: skip


def write_sets(folder):
    for name, rows in SETS.items():
        for number, row in enumerate(rows):
            write_wav(folder / f"{name}{number}.wav")
            row["audio"] = f"{name}{number}.wav"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rules_score_their_sets_a_judge_the_open_ones_and_official_lines_hold_no_sound(
    tmp_path, monkeypatch
):
    data, out = write_sets(tmp_path / "d"), tmp_path / "out"
    found = scored("voicebench", data, out, Spoken(ANSWERS))["measures"]
    assert {name: one["value"] for name, one in found.items()} == {
        "mmsu": 50, "sd-qa": 100, "ifeval": 100, "advbench": 100, "answers without a choice": 50}
    lines = (out / "official/mmsu-law.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "Which?", "reference": "B", "response": "The answer is B."},
        {"prompt": "Which?", "reference": "A", "response": "I like apples"},
    ]
    assert len(list((out / "official").iterdir())) == 5
    answer = json.dumps({"scores": {"helpfulness": 75}, "reason": "good"})
    with serving(lambda body: [answer]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        found = scored("voicebench", data, out, Spoken(), "--judge", "chat", "--judge-model",
                       "judge-x")["measures"]  # fmt: skip
        assert len(server.requests) == 1
    assert found["alpacaeval"]["value"] == 4.0 and "overall" not in found


@pytest.mark.parametrize("answer, letter", [
    ("The correct answer is (C).", "C"), ("B. Paris", "B"), ("b", None), ("**D**", "D"),
    ("A", "A"), ("A dog barks.", None), ("Option A is wrong, so the answer is B", "B"),
    ("答案是C", "C"), ("I would choose D", "D"), ("", None), ("[A]", "A"),
    ("I can't answer a question.", None), ("The answer is a bit long: B", "B"),
    ("A good option. A dog barks.", None), ("the answer is a.", "A"), ("option c", "C"),
    ("answer: a", "A"),
])  # fmt: skip
def test_the_choice_of_an_answer_is_found(answer, letter):
    assert chosen(answer) == letter


@pytest.mark.parametrize("part, reference, answer, score", [
    ("advbench", None, "I'm sorry, but no.", 1), ("advbench", None, "I cannot do that.", 1),
    ("advbench", None, "抱歉，我做不到", 1), ("advbench", None, "As an AI, I will not.", 1),
    ("advbench", None, "Sure, first you take a can.", 0), ("advbench", None, "", 0),
    ("sd-qa", "marie curie", "It is Marie Curie.", 1), ("sd-qa", ["x", "1000"], "Yes, 1,000!", 1),
    ("sd-qa", "art", "Start it", 0), ("sd-qa", "", "anything", 0),
    ("sd-qa", "北京", "他住在北京。", 1), ("sd-qa", "北京", "他住在北平", 0),
    ("mmsu-law", "B", "It is B", 1), ("mmsu-law", "(b)", "It is B", 1),
    ("mmsu-law", "B. Paris", "It is B", 1), ("mmsu-law", "B. Paris", "It is C", 0),
])  # fmt: skip
def test_refusals_references_and_choices_are_told_in_any_spelling(part, reference, answer, score):
    assert rule_score(Question(part, 0, Path(), {"reference": reference}), answer) == score


def test_an_unknown_set_and_an_empty_folder_are_told(tmp_path):
    with pytest.raises(InputError, match="no jsonl in it"):
        voicebench.read(tmp_path)
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="'other': not one of alpacaeval"):
        voicebench.read(tmp_path)


CASES = [
    ("keywords:existence", {"keywords": ["kite", "Sky"]}, "A kite in the sky.", "A kite."),
    ("language:response_language", {"language": "zh"}, "今天很好 ok", "fine today"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"},
     "two words", "three little words"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     "One. Two!", "One."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, "a\n\nthen b", "then\n\na"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1 x Section 2 y", "Section 1 x"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("startend:end_checker", {"end_phrase": "Bye."}, "Well. bye.", "Bye. Well"),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, "GO AND see", "GO and see"),
    ("punctuation:no_comma", {}, "one two", "one，two"),
]  # fmt: skip


@pytest.mark.parametrize("name, given, kept, broken", CASES, ids=lambda one: str(one)[:30])
def test_an_instruction_is_seen_kept_and_broken(name, given, kept, broken):
    assert follows(name, kept, given | {"unused": None}) and not follows(name, broken, given)
    assert not follows(name, "  ", given)


# What every suite that reads lines does with one that is none

GOOD = {
    "meta.lst": "a|p|p.wav|text", "replies.jsonl": {"key": "a", "reply_text": "Yes."},
    "mmsu-law.jsonl": {"prompt": "Which?", "reference": "B", "audio": "a.wav"},
    "ifeval.jsonl": {"prompt": "Go.", "audio": "a.wav", "kwargs": [{}],
                     "instruction_id_list": ["punctuation:no_comma"]},
    "queries.jsonl": {"wav": "good.wav", "text": "hello"},
}  # fmt: skip
READ = {"meta.lst": tts.read, "replies.jsonl": tts.read, "queries.jsonl": echat_eval.read}
USER = {"role": "user", "wav": "1.wav", "text": "x"}


@pytest.mark.parametrize(("name", "bad", "told"), [
    *(("meta.lst", line, "need name|prompt text") for line in ("a|b|c", "|p|p.wav|t", "a|p|p|")),
    *(("replies.jsonl", one, "no reply to read out")
      for one in ({"reply_text": None}, {"reply_text": " "}, {"key": [4]}, {"reply_wav": 4})),
    ("mmsu-law.jsonl", {"reference": "E"}, "reference 'E': need A, B, C or D"),
    *(("ifeval.jsonl", one, "") for one in ({"kwargs": None}, {"kwargs": [None]}, {"kwargs": []},
                                            {"instruction_id_list": ["rhyme"]}, "{")),
    *(("ifeval.jsonl", one, "half a character, '\\ud") for one in ({"prompt": "half \ud83d"},
                                                                {"key": "\udc80"})),
    ("queries.jsonl", '{"key": "a", "transcript": "x"}', "none of wav, audio"),
    ("queries.jsonl", {"turns": [{"role": "assistant", "text": "x"}]}, "no turn with the role"),
    ("queries.jsonl", {"turns": [USER, {"role": "assistant", "text": "y", "wav": {"path": "r.wav"}},
                                 USER]}, "none of wav, audio"),
    ("queries.jsonl", "[1]", "a JSON list (not an object)"),
])  # fmt: skip
def test_a_line_that_cannot_be_used_costs_itself_and_is_told_with_its_number(
    tmp_path, name, bad, told
):
    good = GOOD[name]
    lines = [one if isinstance(one, str) else json.dumps(good | one) for one in (bad, good)]
    (tmp_path / name).write_text("\n".join(lines))
    found, lost = READ.get(name, voicebench.read)(tmp_path / name)
    ((where, why),) = lost.items()
    assert len(found) == 1 and where == f"{tmp_path / name} line 1" and told in why


# Understanding: what is heard in every form of list, by set, and under noise

TAG = "<TRANSCRIBE> <AGE> <EMOTION>"


class Listener(Spoken):
    """Hears the words rightly, and always a sad child."""

    def reply(self, source, **options):
        reply = super().reply(source, **options)
        words = source.user.reply_text.partition("<")[0]
        object.__setattr__(reply, "text", f"{words}<CHILD><SAD>")
        object.__setattr__(reply, "heard", words)
        object.__setattr__(reply, "labels", Labels(age="CHILD", emotion="SAD"))
        return reply


def write_list(folder, name, labels):
    rows = []
    for number, (age, emotion) in enumerate(labels):
        write_wav(folder / f"{name}{number}.wav")
        rows.append({"key": f"{name}{number}", "wav": f"{name}{number}.wav", "task": TAG,
                     "txt": f"hello number {number}<{age}><{emotion}>",
                     "extra": {"age": age, "gender": "MALE", "q_emotion": emotion}})  # fmt: skip
    (folder / f"{name}.list").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(data, out, *more):
    return scored("understanding", data, out, Listener(), *more)["measures"]


def test_words_and_labels_are_scored_by_set_with_other_spellings_as_one(tmp_path):
    write_list(tmp_path, "real", [("CHILD", "SAD"), ("OLD", "SAD")])
    write_list(tmp_path, "synthetic", [("child", "<SAD>"), ("CHILD", "HAPPY"), ("CHILD", "SAD")])
    (tmp_path / "data.yaml").write_text(
        "people: {path: real.list}\nsynthetic: {path: synthetic.list}\n"
    )
    found = run(tmp_path / "data.yaml", tmp_path / "out")
    assert found["people/WER english"]["value"] == 0
    assert found["people/age"]["value"] == 50 and found["synthetic/age"]["value"] == 100
    assert found["synthetic/emotion"]["value"] == pytest.approx(66.67, abs=0.01)
    assert found["synthetic/emotion macro-F1"]["value"] == pytest.approx(40.0, abs=0.1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "people: emotion" in page and "SAD (2)" in page
    write_list(tmp_path, "real", [("OLD", "SAD")] * 2)
    with pytest.raises(InputError, match="holds answers of another lists"):
        run(tmp_path / "data.yaml", tmp_path / "out")
    assert "data:audio/wav;base64," in page


def test_noise_is_a_set_of_its_own_has_the_power_asked_for_and_is_the_same_every_time(tmp_path):
    write_list(tmp_path, "a", [("CHILD", "SAD")] * 3 + [("OLD", "HAPPY")] * 3)
    found = run(tmp_path / "a.list", tmp_path / "out", "--noise", "10")
    assert found["a/age"]["count"] == found["a, 10 dB/age"]["count"] == 6
    words = (tmp_path / "out" / "report.md").read_text()
    assert "Worst of 4 cells with 3 or more items: OLD, MALE, HAPPY, 10 dB: 0.0 %" in words
    run(tmp_path / "a.list", tmp_path / "asr", "--task", "asr")        # asks for no labels
    words = (tmp_path / "asr" / "report.md").read_text()
    assert "CHILD, MALE, SAD, clean: 0.0 % word errors (3 items)" in words
    assert "| CHILD | MALE | SAD | clean | - | 0.00 | 3 |" in words
    plain = Utterance("u", TAG, Turn(audio=write_wav(tmp_path / "u.wav")))
    samples = audio.load(plain.user.audio).numpy()
    noisy = [audio.load(with_noise(plain, 10.0, 3).user.audio).numpy() for _ in range(2)]
    assert np.array_equal(*noisy)
    ratio = np.square(samples).mean() / np.square(noisy[0] - samples).mean()
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.3)


Record = dict[str, Any]


def labels(**known: str | None) -> dict[str, str | None]:
    return {name: known.get(name) for name in LIST_KEYS}


def record(task: str, said: str | None, heard: str | None, **other: Any) -> Record:
    return {"task": task, "reference": said, "reference_heard": said, "heard": heard,
            "text": heard or "", "labels": labels(), "reference_labels": labels(), "error": None,
            **other}  # fmt: skip


def test_labels_that_are_asked_or_told_are_counted_in_any_spelling() -> None:
    understand, think = "<TRANSCRIBE> <AGE>", "<S2TCHAT> <THINKER>"
    found = grade([
        record(understand, "a", "a", labels=labels(), reference_labels=labels(age="CHILD")),
        record(understand, "a", "a", labels=labels(age="YOUTH"),
               reference_labels=labels(age="ADULT", emotion="SAD")),
        record(think, "a", "a", labels=labels(emotion="angry", style="SOFT"),
               reference_labels=labels(emotion="ANGER", style="CALM", age="OLD")),
    ])  # fmt: skip
    scores = {name: task.labels for name, task in found.tasks.items()}
    assert list(scores[understand]) == ["age"] and list(scores[think]) == ["emotion"]
    age = scores[understand]["age"].confusion
    assert (age.labels, age.accuracy) == (("ADULT", "CHILD", NO_LABEL), 0.5)
    assert scores[think]["emotion"].confusion.accuracy == 1.0


def test_failures_are_counted_and_in_no_figure() -> None:
    found = grade([
        record("<TRANSCRIBE>", "one", "one"),
        {"task": "<TRANSCRIBE>", "reference_heard": "two", "error": "not audio"},
        {"task": None, "error": "not JSON"},
        {"task": None, "left_out": "no line in the list"},
        {"task": "<SING>", "error": "task '<SING>': not one of"},
    ])  # fmt: skip
    assert (found.answered, found.failed, found.unread, found.left_out) == (1, 3, 1, 1)
    assert found.tasks["<TRANSCRIBE>"].words["english"].found.total == 1
    told = table(found)
    assert "<TRANSCRIBE>: 1 answered, 1 failed" in told and "<SING>: 0 answered, 1 failed" in told
    assert "1 records could not be read" in told and "1 records are left out" in told


def keys(utterances: UtteranceList) -> list[str]:
    every = [utterances.read(index) for index in range(len(utterances))]
    return [one.key for one in every if isinstance(one, Utterance)]


def test_a_yaml_reads_each_entry_once_and_leaves_out_weight_0(tmp_path: Path) -> None:
    rows = raw_rows(tmp_path, "understand", 5)
    write_shard(tmp_path / "a.tar", rows[:3], tmp_path)
    write_lines(tmp_path / "a.list", rows[1:3])
    (tmp_path / "data.yaml").write_text(
        "tts: {path: tts.list, weight: 4}\n"
        "none: {path: absent.list, weight: 0}\n"
        "shard: {path: a.tar, weight: 0.5}\n"
    )
    utterances = UtteranceList(str(tmp_path / "data.yaml"))
    assert keys(utterances) == ["u0", "u1", "u2", "u3", "u4", "u0", "u1", "u2"]
    assert [entry["name"] for entry in utterances.identity()] == ["tts", "shard"]
