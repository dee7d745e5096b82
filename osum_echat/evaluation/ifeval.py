"""Instructions whose keeping a program can check, by the names that IFEval gives them.

Source of the names and their arguments: Zhou et al. 2023, arXiv:2311.07911, table 4. The checks
are written from those descriptions. Three kinds need more than rules here (sentence splitting by a
trained model, language detection): of these, language is told for Chinese, English and nothing
else, and sentences end at . ! ? or their Chinese forms.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from osum_echat.errors import DataError

Check = Callable[[str, Mapping[str, Any]], bool]
_WORD = re.compile(r"[\w'-]+")
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]+|[^.!?。！？]+$")
_HANZI = re.compile(r"[\u4e00-\u9fff]")
_LANGUAGES = {"en": re.compile(r"[a-z]", re.IGNORECASE), "zh": _HANZI}


def _compare(count: int, given: Mapping[str, Any], wanted: str) -> bool:
    """Counts against `less than` or `at least`."""
    limit = int(given[wanted])
    return count < limit if given.get("relation") == "less than" else count >= limit


def _paragraphs(text: str, mark: str = r"\s?\*\*\*\s?") -> list[str]:
    return [one for one in re.split(mark, text.strip()) if one.strip()]


def _sections(text: str, given: Mapping[str, Any]) -> bool:
    mark = re.escape(str(given["section_spliter"]))     # spelt so by the data
    return len(re.findall(rf"\s?{mark}\s?\d+", text)) >= int(given["num_sections"])


def _first_words(text: str, given: Mapping[str, Any]) -> bool:
    paragraphs = _paragraphs(text, r"\n\n")
    place = int(given["nth_paragraph"]) - 1
    if len(paragraphs) != int(given["num_paragraphs"]) or not 0 <= place < len(paragraphs):
        return False
    first = _WORD.search(paragraphs[place])
    return first is not None and first[0].lower() == str(given["first_word"]).lower()


def _repeats(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(str(given["prompt_to_repeat"]).strip().lower())


def _is_json(text: str, _: Mapping[str, Any]) -> bool:
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _two_answers(text: str, _: Mapping[str, Any]) -> bool:
    answers = [one.strip() for one in text.split("******") if one.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def _letter(text: str, given: Mapping[str, Any]) -> bool:
    count = text.lower().count(str(given["letter"]).lower())
    relation = {"relation": given["let_relation"], "n": given["let_frequency"]}
    return _compare(count, relation, "n")


def _language(text: str, given: Mapping[str, Any]) -> bool:
    """Whether most letters are of the language; those of other scripts are not told apart."""
    pattern = _LANGUAGES.get(str(given["language"])[:2])
    letters = [one for one in text if one.isalpha()]
    if pattern is None or not letters:
        return False
    return sum(bool(pattern.match(one)) for one in letters) > len(letters) / 2


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, flags=re.IGNORECASE))


CHECKS: Mapping[str, Check] = {
    "keywords:existence": lambda text, given: all(
        _count(re.escape(word), text) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given: not any(
        _count(rf"\b{re.escape(word)}\b", text) for word in given["forbidden_words"]),
    "keywords:frequency": lambda text, given: _compare(
        _count(re.escape(given["keyword"]), text), given, "frequency"),
    "keywords:letter_frequency": _letter,
    "language:response_language": _language,
    "length_constraints:number_words": lambda text, given: _compare(
        len(_WORD.findall(text)), given, "num_words"),
    "length_constraints:number_sentences": lambda text, given: _compare(
        len(_SENTENCE.findall(text.strip())), given, "num_sentences"),
    "length_constraints:number_paragraphs": lambda text, given: len(
        _paragraphs(text)) == int(given["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _first_words,
    "detectable_content:number_placeholders": lambda text, given: _count(
        r"\[.*?\]", text) >= int(given["num_placeholders"]),
    "detectable_content:postscript": lambda text, given: _count(
        re.escape(given["postscript_marker"]), text) > 0,
    "detectable_format:number_bullet_lists": lambda text, given: len(
        re.findall(r"^\s*[*-]\s+\S", text, re.MULTILINE)) == int(given["num_bullets"]),
    "detectable_format:constrained_response": lambda text, given: any(
        answer in text for answer in
        ("My answer is yes.", "My answer is no.", "My answer is maybe.")),
    "detectable_format:number_highlighted_sections": lambda text, given: len(
        re.findall(r"\*{1,2}[^*\n]+\*{1,2}", text)) >= int(given["num_highlights"]),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda text, given: bool(re.search(r"<<[^<>\n]*\S[^<>\n]*>>", text)),
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": lambda text, given: text.strip().strip('"').lower().endswith(
        str(given["end_phrase"]).strip().lower()),
    "startend:quotation": lambda text, given: len(text.strip()) > 1
        and text.strip().startswith('"') and text.strip().endswith('"'),
    "change_case:capital_word_frequency": lambda text, given: _compare(
        sum(word.isupper() for word in _WORD.findall(text)),
        {"relation": given["capital_relation"], "n": given["capital_frequency"]}, "n"),
    "change_case:english_capital": lambda text, given: text.isupper(),
    "change_case:english_lowercase": lambda text, given: text.islower(),
    "punctuation:no_comma": lambda text, given: not re.search("[,，]", text),
}  # fmt: skip


def follows(name: str, text: str, given: Mapping[str, Any]) -> bool:
    """Whether a reply keeps one instruction. Raises DataError for one that is not known."""
    check = CHECKS.get(name)
    if check is None:
        raise DataError(f"instruction {name!r}: not one of {', '.join(sorted(CHECKS))}")
    known = {key: value for key, value in given.items() if value is not None}
    try:
        return bool(text.strip()) and check(text, known)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"instruction {name!r}: arguments {known} ({error!r})") from error


def loose(text: str) -> list[str]:
    """A reply as it is, and without its first line, last line, both, or asterisks."""
    lines = text.split("\n")
    forms = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    forms = [one.strip() for one in forms]
    return list(dict.fromkeys([*forms, *(one.replace("*", "") for one in forms)]))
