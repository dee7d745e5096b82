"""Claims about metrics: texts made comparable, errors as jiwer counts, intervals that cover."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osum_echat import metrics
from osum_echat.errors import InputError
from osum_echat.metrics import Confusion, error_rate, interval, language_of, normalise

LETTERS = jiwer.Compose(
    [jiwer.RemoveWhiteSpace(replace_by_space=False), jiwer.ReduceToListOfListOfChars()]
)


WORDS = st.sampled_from("the cat sat a 我 们 很 it's".split())
PAIRS = st.tuples(st.lists(WORDS, min_size=1, max_size=9).map(" ".join),
                  st.lists(WORDS, max_size=9).map(" ".join))  # fmt: skip


@settings(deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=9))
def test_error_rates_agree_with_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, heard = map(list, zip(*pairs, strict=True))
    words = jiwer.process_words(references, heard)
    letters = jiwer.process_characters(references, heard, LETTERS, LETTERS)
    for counted, unit in ((words, "word"), (letters, "character")):
        own = error_rate(pairs, unit)
        assert (own.substitutions, own.deletions, own.insertions) == (
            counted.substitutions, counted.deletions, counted.insertions
        )  # fmt: skip
        assert own.rate == pytest.approx(counted.wer if unit == "word" else counted.cer, abs=1e-12)
    for reference, said in pairs:
        assert error_rate([(reference, said)]).rate == pytest.approx(jiwer.wer(reference, said))


def test_mixed_texts_count_both_and_empty_references_insertions():
    found = error_rate([("我爱python", "我 爱 python 三"), ("ab cd", "ab")], "mixed")
    assert (found.insertions, found.deletions, found.substitutions, found.total) == (1, 1, 0, 5)
    assert found.rate == pytest.approx(2 / 5)
    assert error_rate([("", "")]).rate == 0 and error_rate([]).rate == 0
    assert error_rate([("", "two words")]).rate == 2
    assert metrics.errors_of_each([("a b", "a"), ("", "x")]) == ([1, 1], [2, 0])


def test_labels_have_one_spelling() -> None:
    spellings = {
        "<youth>": "ADULT", "Middle_Age": "ADULT", "angry": "ANGER", "<朗读>": "新闻科普",
        "对话": "日常口语", "<&&>": None, "none": None, "null": None, "": None,
        "<开心>": "开心", "Throat clearing": "THROAT CLEARING",
    }  # fmt: skip
    assert {label: metrics.spelt(label) for label in spellings} == spellings
    assert metrics.spelt(None) is None


def test_a_confusion_counts_what_was_taken_for_what() -> None:
    found = Confusion.of([
        ("SAD", "sad"), ("SAD", "<HAPPY>"), ("HAPPY", "HAPPY"), ("ANGER", "angry"),
        ("SAD", None), (None, "SAD"), ("<NONE>", "SAD"),
    ])  # fmt: skip
    assert found.labels == ("ANGER", "HAPPY", "SAD", metrics.NO_LABEL)
    assert found.counts == ((1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 1, 1), (0, 0, 0, 0))
    assert (found.right, found.total) == (3, 5) and found.accuracy == pytest.approx(0.6)
    assert found.macro_f1 == pytest.approx((1 + 2 / 3 + 0.5) / 3)
    empty = Confusion.of([])
    assert (empty.labels, empty.accuracy, empty.macro_f1) == ((), 0.0, 0.0)


def test_intervals_cover_the_truth_as_often_as_they_say_and_pairs_tell_a_small_difference() -> None:
    rng = np.random.default_rng(3)
    truth, covered, ratio_covered = 0.3, 0, 0
    for trial in range(200):
        low, high = interval((rng.random(80) < truth).astype(float), resamples=300, seed=trial)
        covered += low <= truth <= high
        totals = rng.integers(1, 20, 80)
        errors = rng.binomial(totals, truth)
        low, high = interval(errors, totals, resamples=300, seed=trial)
        ratio_covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.985 and 0.90 <= ratio_covered / 200 <= 0.985
    hard = rng.normal(0, 1, 100)
    first, second = hard + rng.normal(0.2, 0.1, 100), hard + rng.normal(0, 0.1, 100)
    low, high = metrics.paired_interval(first, second)
    assert 0 < low < 0.2 < high < 0.3 and interval(first)[0] < interval(second)[1]


@pytest.mark.parametrize("text, plain",
                         [("I'll pay $20 million, won't I?", "i will pay $20000000 will not i"),
                          ("<CALM>Hello [noise] (aside) um there <OTHER><ADULT>", "hello there"),
                          ("  a\tb \n c ", "a b c"), ("", "")])  # fmt: skip
def test_english_is_normalised_as_whisper_does(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize("text, plain", [
    ("今天是２０２４年5月1日，温度３.５度。", "今天是二零二四年五月一日温度三点五度"),
    ("增长了 50% ！", "增长了百分之五十"),
    ("我 爱 Python 和 the Colour", "我爱 python 和 the color"),
    ("打电话13800138000", "打电话一三八零零一三八零零零"),
    ("<HAPPY>好的 <开心>", "好的"),
    ("1,234元", "一千二百三十四元"),
    ("二〇〇八年", "二零零八年"),
    ("价格 $20", "价格二十"),
    ("编号007", "编号零零七"), ("好 the colour，天", "好 the color 天"),
    ("0到10", "零到十"), ("1005年", "一零零五年"), ("10010个", "一万零一十个"),
    ("20030个", "二万零三十个"), ("1000500个", "一百万零五百个"), ("100000001个", "一亿零一个"),
    ("230004000个", "二亿三千万零四千个"),
    ("9999999999个", "九十九亿九千九百九十九万九千九百九十九个"),
])  # fmt: skip
def test_chinese_is_read_out_without_marks_and_spaces(text: str, plain: str) -> None:
    assert normalise(text) == plain


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_normalised_and_ends_without_loose_spaces(text: str) -> None:
    for language in ("auto", "english", "chinese"):
        plain = normalise(text, language)
        assert plain == " ".join(plain.split()) and "<" not in plain


def test_the_language_is_that_of_the_reference_and_no_other_is_known():
    assert language_of("hello <开心>") == "english" and language_of("hello 你") == "chinese"
    assert metrics.normalised_pair("买2个", "buy 2") == ("买二个", "buy 二")
    assert metrics.normalised_pair("buy two", "买 2") == ("buy 2", "买 2")
    with pytest.raises(InputError, match="language 'klingon': not one of auto, english, chinese"):
        normalise("x", "klingon")
    with pytest.raises(InputError, match="unit 'letter': not one of word"):
        metrics.split("x", "letter")
