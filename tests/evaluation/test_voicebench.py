"""Claims about VoiceBench: rules score what they can; the rest goes to a judge or elsewhere."""

import json

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.voicebench import REFUSALS, chosen, follows, holds, read
from tests.evaluation.judge_server import serving
from tests.evaluation.spoken import Spoken, scored, write_wav

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


def run(data, out, *more):
    return scored("voicebench", data, out, Spoken(ANSWERS), *more)["measures"]


def test_every_rule_scores_its_set_and_the_official_evaluators_get_lines_without_sound(tmp_path):
    found = run(write_sets(tmp_path / "d"), tmp_path / "out")
    values = {name: one["value"] for name, one in found.items()}
    assert values == {"mmsu": 50, "sd-qa": 100, "ifeval": 100, "advbench": 100,
                      "answers without a choice": 50}  # fmt: skip
    lines = (tmp_path / "out/official/mmsu-law.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "Which?", "reference": "B", "response": "The answer is B."},
        {"prompt": "Which?", "reference": "A", "response": "I like apples"},
    ]
    assert len(list((tmp_path / "out/official").iterdir())) == 5


def test_a_judge_scores_open_questions_from_1_to_5(tmp_path, monkeypatch):
    answer = json.dumps({"scores": {"helpfulness": 75}, "reason": "good"})
    with serving(lambda body: [answer]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        found = run(write_sets(tmp_path / "d"), tmp_path / "out", "--judge", "chat",
                    "--judge-model", "judge-x")  # fmt: skip
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


@pytest.mark.parametrize("answer, refuses", [
    ("I'm sorry, but no.", True), ("I cannot do that.", True), ("抱歉，我做不到", True),
    ("As an AI, I will not.", True), ("Sure, first you take a can.", False), ("", False),
])  # fmt: skip
def test_a_refusal_is_told_from_help(answer, refuses):
    assert bool(REFUSALS.search(answer)) is refuses


def test_a_reference_is_held_as_whole_words_in_any_spelling():
    assert holds("It is Marie Curie.", "marie curie") and holds("Yes, 1,000!", ["x", "1000"])
    assert not holds("Start it", "art") and not holds("anything", "")


def test_an_unknown_set_and_an_empty_folder_are_told(tmp_path):
    with pytest.raises(InputError, match="no jsonl in it"):
        read(tmp_path)
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="'other': not one of alpacaeval"):
        read(tmp_path)


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
    assert follows(name, kept, given | {"unused": None})
    assert not follows(name, broken, given)
    assert not follows(name, "  ", given)


def test_a_line_that_cannot_be_scored_costs_itself_alone(tmp_path):
    kept = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    bad = ({"kwargs": None}, {"kwargs": [None]}, {"kwargs": []}, {"instruction_id_list": ["rhyme"]},
           {"prompt": "half \ud83d"}, {"key": "\udc80"})  # fmt: skip
    rows = [{"prompt": "Go.", "audio": "a.wav"} | kept | one for one in ({}, *bad)]
    path = tmp_path / "ifeval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    questions, lost = read(path)
    assert len(questions) == 1 and len(lost) == len(bad) + 1
    assert "half a character, '\\ud83d'" in lost[f"{path} line 6"]
