"""Texts made comparable before errors are counted: English, Chinese, and both in one sentence.

English follows Whisper's normaliser (Radford et al. 2022, appendix C), as the package
whisper-normalizer has it. Chinese follows the practice of AISHELL and WenetSpeech: characters only,
numbers as they are read out.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from osum_echat.errors import InputError

LANGUAGES = ("auto", "english", "chinese")
UNITS = ("word", "character", "mixed")
_CJK = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_HAS_CJK = re.compile(f"[{_CJK}]")
_MIXED_UNIT = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")
_NOT_CJK = re.compile(f"[^{_CJK}]+")
_TAG = re.compile(r"<[^<>]*>")
_YEAR = re.compile(r"(?<!\d)(\d{4})(?=年)")
_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?(%)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DIGITS = "零一二三四五六七八九"
_PLACES = ("", "十", "百", "千")
_SECTIONS = ("", "万", "亿")  # of four digits each
_READ_AS_AMOUNT = 10  # digits; longer numbers are read digit by digit, as telephone numbers are
_CURRENCIES = re.compile("[$¢€£¥]")


def normalise(text: str, language: str = "auto") -> str:
    """The text without tags, case and punctuation, its spellings and numbers made one.

    language: english (numbers in digits), chinese (numbers read out in characters, no spaces
    between characters; English words inside keep theirs), or auto: chinese where the text holds
    any Chinese character. Raises InputError for another one.
    """
    if language not in LANGUAGES:
        raise InputError(f"language {language!r}: not one of {', '.join(LANGUAGES)}")
    if language == "auto":
        language = language_of(text)
    text = _TAG.sub(" ", text)
    return _chinese(text) if language == "chinese" else _english(text)


def language_of(text: str) -> str:
    """chinese where the text holds any Chinese character, else english."""
    return "chinese" if _HAS_CJK.search(_TAG.sub(" ", text)) else "english"


def normalised_pair(reference: str, heard: str, language: str = "auto") -> tuple[str, str]:
    """Both texts by the rules of one language; auto: that of the reference."""
    if language == "auto":
        language = language_of(reference)
    return normalise(reference, language), normalise(heard, language)


def split(text: str, unit: str) -> list[str]:
    """What errors are counted in: words, characters without spaces, or both (mixed).

    mixed: every Chinese character by itself, anything else in words. Raises InputError.
    """
    if unit == "word":
        return text.split()
    if unit == "character":
        return [one for one in text if not one.isspace()]
    if unit == "mixed":
        return _MIXED_UNIT.findall(text)
    raise InputError(f"unit {unit!r}: not one of {', '.join(UNITS)}")


def _english(text: str) -> str:
    return " ".join(_whisper()(text).split())


@cache
def _whisper() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def _chinese(text: str) -> str:
    """Numbers read out, English words by their own rules, all marks gone."""
    text = _CURRENCIES.sub(" ", unicodedata.normalize("NFKC", text).lower())
    text = _THOUSANDS.sub("", text)
    text = _YEAR.sub(lambda found: _one_by_one(found[1]), text)
    text = _NUMBER.sub(_read_out, text)
    text = _NOT_CJK.sub(lambda found: f" {_english(found[0])} ", text.replace("〇", "零"))
    words = " ".join(text.split())
    return re.sub(f"(?<=[{_CJK}]) (?=[{_CJK}])", "", words)


def _read_out(found: re.Match[str]) -> str:
    """50.5% -> 百分之五十点五"""
    whole, decimals, percent = found.groups()
    words = _amount(whole)
    if decimals:
        words += f"点{_one_by_one(decimals)}"
    return f"百分之{words}" if percent else words


def _one_by_one(digits: str) -> str:
    return "".join(_DIGITS[int(digit)] for digit in digits)


def _amount(digits: str) -> str:
    """10203 -> 一万零二百零三; numbers that begin with 0 or are very long digit by digit."""
    if len(digits) > _READ_AS_AMOUNT or (digits.startswith("0") and len(digits) > 1):
        return _one_by_one(digits)
    words, gap = "", False
    for place in reversed(range((len(digits) + 3) // 4)):
        section = int(digits[-4 * (place + 1) : len(digits) - 4 * place])
        if section:
            words += "零" * (bool(words) and (gap or section < 1000))
            words += _section(section) + _SECTIONS[place]
        gap = section % 10 == 0 if section else bool(words)
    words = words.removeprefix("一") if words.startswith("一十") else words
    return words or _DIGITS[0]


def _section(number: int) -> str:
    """A number from 1 to 9999."""
    words, gap = "", False
    for place in reversed(range(len(str(number)))):
        digit = number // 10**place % 10
        if digit:
            words += "零" * gap + _DIGITS[digit] + _PLACES[place]
        gap = digit == 0
    return words
