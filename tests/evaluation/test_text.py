"""Claims about texts made comparable: English as Whisper has it, Chinese read out, and both."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osum_echat.errors import InputError
from osum_echat.metrics import language_of, normalise, normalised_pair, split

DIGITS = {digit: number for number, digit in enumerate("零一二三四五六七八九")}
PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("I'll pay $20 million, won't I?", "i will pay $20000000 will not i"),
        ("Mr. Brown's two hundred and three", "mister brown is 203"),
        ("one oh one", "101"),
        ("the 1960s, 274th", "the 1960s 274th"),
        ("<CALM>Hello [noise] (aside) um there <OTHER><ADULT>", "hello there"),
        ("three point one four", "3.14"),
        ("the organisation's colour", "the organization is color"),
        ("you can't, shan't", "you can not sha not"),
        ("  a\tb \n c ", "a b c"),
        ("", ""),
    ],
)
def test_english_is_normalised_as_whisper_does(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("今天是２０２４年5月1日，温度３.５度。", "今天是二零二四年五月一日温度三点五度"),
        ("增长了 50% ！", "增长了百分之五十"),
        ("我 爱 Python 和 the Colour", "我爱 python 和 the color"),
        ("打电话13800138000", "打电话一三八零零一三八零零零"),
        ("<HAPPY>好的 <开心>", "好的"),
        ("1,234元", "一千二百三十四元"),
        ("二〇〇八年", "二零零八年"),
        ("价格 $20", "价格二十"),
        ("编号007", "编号零零七"),
    ],
)
def test_chinese_is_read_out_without_marks_and_spaces(text: str, plain: str) -> None:
    assert normalise(text) == plain


def number_of(words: str) -> int:
    """A Chinese numeral back as a number."""
    total = section = digit = 0
    for word in words:
        if word in DIGITS:
            digit = DIGITS[word]
        elif PLACES[word] < 10**4:
            section += (digit or 1) * PLACES[word]
            digit = 0
        else:
            total += (section + digit) * PLACES[word]
            section = digit = 0
    return total + section + digit


@settings(deadline=None)
@given(st.integers(0, 10**10 - 1))
def test_a_number_read_out_is_that_number(number: int) -> None:
    words = normalise(str(number), "chinese")
    assert number_of(words) == number
    assert "零零" not in words and (number == 0 or not words.endswith("零"))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_normalised_and_ends_without_loose_spaces(text: str) -> None:
    for language in ("auto", "english", "chinese"):
        plain = normalise(text, language)
        assert plain == " ".join(plain.split()) and "<" not in plain


@settings(deadline=None)
@given(st.lists(st.sampled_from("我 你 好 天 python the colour".split()), max_size=12))
def test_spaces_marks_and_width_do_not_matter_in_chinese(words: list[str]) -> None:
    spaced = normalise("好 " + " ".join(words))
    marked = normalise("好，" + "， ".join(words).upper() + "。")
    assert spaced == marked == normalise(spaced)


def test_the_language_is_that_of_the_reference() -> None:
    assert language_of("hello <开心>") == "english" and language_of("hello 你") == "chinese"
    assert normalised_pair("买2个", "buy 2") == ("买二个", "buy 二")
    assert normalised_pair("buy two", "买 2") == ("buy 2", "买 2")


def test_units_of_a_text() -> None:
    assert split("我爱 python 三和", "mixed") == ["我", "爱", "python", "三", "和"]
    assert split("我 爱 ab", "character") == ["我", "爱", "a", "b"]
    assert split(" a  bc ", "word") == ["a", "bc"]


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="language 'klingon': not one of auto, english, chinese"):
        normalise("x", "klingon")
    with pytest.raises(InputError, match="unit 'letter': not one of word"):
        split("x", "letter")
