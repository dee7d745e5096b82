"""What answers are worth: texts made comparable, error rates, label accuracy, and intervals."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from osum_echat.errors import InputError
from osum_echat.records import canonical_label
from osum_echat.tasks import fix_labels

NO_LABEL = "(none)"  # stands in a confusion for an answer without a label
RESAMPLES = 2000
_AT_ONCE = 1 << 22  # values drawn in one piece, to bound the memory


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Errors over units of the references. rate: 0 is none; it can go beyond 1.

    Without any unit in the references, rate is the number of insertions.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    total: int  # units of the references

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def error_rate(pairs: Sequence[tuple[str, str]], unit: str = "word") -> ErrorRate:
    """The least errors that turn each reference into what was heard, over all pairs together.

    pairs: (reference, heard); unit: word (WER), character (CER, spaces do not count) or mixed
    (Chinese characters and other words). Raises InputError for another unit.
    """
    from rapidfuzz.distance import Levenshtein

    kinds: Counter[str] = Counter()
    total = 0
    for reference, heard in pairs:
        wanted = split(reference, unit)
        total += len(wanted)
        kinds.update(edit.tag for edit in Levenshtein.editops(wanted, split(heard, unit)))
    errors = kinds.total()
    return ErrorRate(
        rate=errors / total if total else float(errors),
        substitutions=kinds["replace"], deletions=kinds["delete"], insertions=kinds["insert"],
        total=total,
    )  # fmt: skip


def errors_of_each(
    pairs: Sequence[tuple[str, str]], unit: str = "word"
) -> tuple[list[int], list[int]]:
    """Errors and reference units of every pair: what `interval` needs for an error rate."""
    each = [error_rate([pair], unit) for pair in pairs]
    return [one.errors for one in each], [one.total for one in each]


def spelt(label: str | None) -> str | None:
    """A label in its one spelling: `<youth>` -> ADULT, 朗读 -> 新闻科普; None for no label."""
    name = canonical_label(label)
    return None if name is None else canonical_label(fix_labels(f"<{name}>"))


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each label was taken for which. counts[wanted][found], in the order of labels."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str | None, str | None]]) -> "Confusion":
        """Count (wanted, found) labels in any spelling.

        A pair without a wanted label is left out; a found label that is missing counts as NO_LABEL.
        """
        counted: Counter[tuple[str, str]] = Counter()
        for wanted, found in pairs:
            name = spelt(wanted)
            if name is not None:
                counted[name, spelt(found) or NO_LABEL] += 1
        seen = {name for pair in counted for name in pair}
        labels = (*sorted(seen - {NO_LABEL}), *sorted(seen & {NO_LABEL}))
        return cls(labels, tuple(tuple(counted[row, column] for column in labels)
                                 for row in labels))  # fmt: skip

    @property
    def total(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def right(self) -> int:
        return sum(row[place] for place, row in enumerate(self.counts))

    @property
    def accuracy(self) -> float:
        """The share that is right; 0 where nothing was counted."""
        return self.right / self.total if self.total else 0.0

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that were wanted at least once, each weighing the same."""
        scores = []
        for place, row in enumerate(self.counts):
            wanted, found = sum(row), sum(other[place] for other in self.counts)
            if wanted:
                scores.append(2 * row[place] / (wanted + found))
        return sum(scores) / len(scores) if scores else 0.0


def interval(
    values: Sequence[float], totals: Sequence[float] | None = None, *,
    level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Where the mean of such values lies, by bootstrap over the items (percentiles).

    totals: where given, the figure is sum(values) / sum(totals), as an error rate is. Raises
    ValueError for no values, or totals of another length.
    """
    drawn = _resampled(_columns(values, totals), resamples, seed)
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return float(low), float(high)


def paired_interval(
    first: Sequence[float], second: Sequence[float], totals: Sequence[float] | None = None, *,
    level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Where the figure of `first` less that of `second` lies, both measured on the same items.

    An interval without 0 tells a difference. Raises ValueError as `interval` does.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values; pairs are needed")
    less = [one - other for one, other in zip(first, second, strict=True)]
    return interval(less, totals, level=level, resamples=resamples, seed=seed)


def _columns(values: Sequence[float], totals: Sequence[float] | None) -> np.ndarray:
    """(items, 2): value and total of each item."""
    if not len(values):
        raise ValueError("no values; an interval needs one or more")
    weights = np.ones(len(values)) if totals is None else np.asarray(totals, dtype=np.float64)
    if len(weights) != len(values):
        raise ValueError(f"{len(values)} values and {len(weights)} totals; one total a value")
    return np.stack((np.asarray(values, dtype=np.float64), weights), axis=1)


def _resampled(each: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) ratios of sums over as many items, drawn from (items, 2) with replacement."""
    rng = np.random.default_rng(seed)
    items = len(each)
    rows = max(1, _AT_ONCE // items)
    sums = np.concatenate([
        each[rng.integers(0, items, (min(rows, resamples - start), items))].sum(axis=1)
        for start in range(0, resamples, rows)
    ])  # fmt: skip
    # 0 / 0 counts as 0: a draw of nothing but empty references
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] != 0)


LANGUAGES = ("auto", "english", "chinese")
UNITS = ("word", "character", "mixed")
_CJK = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_HAS_CJK = re.compile(f"[{_CJK}]")
_MIXED_UNIT = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")
_NOT_CJK = re.compile(f"[^{_CJK}]+")
TAG = re.compile(r"<[^<>]*>")
HANZI = re.compile(r"[\u4e00-\u9fff]")        # the common Chinese characters
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
    text = TAG.sub(" ", text)
    return _chinese(text) if language == "chinese" else _english(text)


def language_of(text: str) -> str:
    """chinese where the text holds any Chinese character, else english."""
    return "chinese" if _HAS_CJK.search(TAG.sub(" ", text)) else "english"


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
