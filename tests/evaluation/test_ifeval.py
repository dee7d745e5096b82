"""Claims about instructions that a program can check: kept, broken, and unknown ones."""

import pytest

from osum_echat.errors import DataError
from osum_echat.evaluation.ifeval import CHECKS, follows, loose

CASES = [
    ("keywords:existence", {"keywords": ["kite", "Sky"]}, "A kite in the sky.", "A kite."),
    ("keywords:forbidden_words", {"forbidden_words": ["art"]}, "A party.", "Art is long."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"},
     "go and go", "go"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
     "one", "eel"),
    ("language:response_language", {"language": "zh"}, "今天很好 ok", "fine today"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"},
     "two words", "three little words"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     "One. Two!", "One."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, "a\n\nthen b", "then\n\na"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\nP.S. y", "x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     "*a* and **b**", "*a*"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1 x Section 2 y", "Section 1 x"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>> x", "<<>> x"),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it. done", "done"),
    ("startend:end_checker", {"end_phrase": "Bye."}, "Well. bye.", "Bye. Well"),
    ("startend:quotation", {}, '"quoted"', '"half'),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, "GO AND see", "GO and see"),
    ("change_case:english_capital", {}, "ALL OF IT.", "All of it."),
    ("change_case:english_lowercase", {}, "all of it.", "All of it."),
    ("punctuation:no_comma", {}, "one two", "one，two"),
]  # fmt: skip


@pytest.mark.parametrize("name, given, kept, broken", CASES, ids=lambda one: str(one)[:30])
def test_an_instruction_is_seen_kept_and_broken(name, given, kept, broken):
    assert follows(name, kept, given | {"unused": None})
    assert not follows(name, broken, given)
    assert not follows(name, "  ", given)


def test_every_check_is_tried_here():
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_an_unknown_instruction_and_missing_arguments_are_told():
    with pytest.raises(DataError, match="'poetry:rhyme': not one of"):
        follows("poetry:rhyme", "x", {})
    with pytest.raises(DataError, match="arguments"):
        follows("keywords:existence", "x", {})


def test_loose_forms_leave_out_first_and_last_lines_and_asterisks():
    plain = ["a\nb\nc", "b\nc", "a\nb", "b"]
    assert loose("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", *plain]
