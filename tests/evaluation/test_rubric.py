"""Claims about the rubric: what a judge is told, and which answers hold scores."""

import json

import pytest

from osum_echat.errors import ConfigError
from osum_echat.evaluation.rubric import Exhibit, Rubric
from osum_echat.records import Labels
from tests.evaluation.judge_server import NAMES, scores

RUBRIC = Rubric.load()


def exhibit(transcript: str = "I lost my kite", **more) -> Exhibit:
    return Exhibit("k", "multi", transcript, Labels(age="CHILD", emotion="SAD", event="OTHER"),
                   "Oh no.", "SAD", **more)  # fmt: skip


def told(**more) -> str:
    return "\n".join(one["content"] for one in RUBRIC.messages(exhibit(**more)))


def test_the_rubric_has_a_version_and_its_dimensions_in_both_languages():
    assert RUBRIC.version == "empathy-v1" and RUBRIC.names == NAMES
    assert all(set(one.wording) == {"en", "zh"} for one in RUBRIC.dimensions)


def test_a_judge_sees_words_labels_reply_and_the_emotion_heard():
    text = told(earlier=(("hello", "hi there"),))
    for part in ("I lost my kite", "age CHILD, emotion SAD", "Oh no.", "hi there", *NAMES):
        assert part in text
    assert "OTHER" not in text


def test_a_chinese_query_is_asked_about_in_chinese():
    text = told(transcript="我的风筝丢了")
    assert "回复" in text and "You judge" not in text


@pytest.mark.parametrize("before, after", [
    ("", ""), ("```json\n", "\n```"), ("Let me think {not this}. ", " That is all."),
    ('{"other": 1} ', ""),
])  # fmt: skip
def test_scores_are_found_whatever_stands_around_them(before, after):
    verdict = RUBRIC.read(f"{before}{scores(70)}{after}")
    assert verdict is not None and verdict.overall == 70 and verdict.reason == "fine"


@pytest.mark.parametrize("spoilt", [
    {"relevance": 101}, {"relevance": -1}, {"relevance": "80"}, {"relevance": True},
    dict.fromkeys(NAMES),
])  # fmt: skip
def test_scores_out_of_range_or_of_no_number_are_no_answer(spoilt):
    given = dict.fromkeys(NAMES, 70) | spoilt
    assert RUBRIC.read(json.dumps({"scores": given})) is None


@pytest.mark.parametrize("answer", ["", "80", "{", '{"scores": {"relevance": 80}}', "{" * 5000,
                                    '{"scores": {"relevance": NaN}}'])  # fmt: skip
def test_what_is_incomplete_is_no_answer(answer):
    assert RUBRIC.read(answer) is None


def test_a_file_that_is_no_rubric_is_told(tmp_path):
    (tmp_path / "r.yaml").write_text("version: x\n")
    with pytest.raises(ConfigError, match="its form: empathy-v1"):
        Rubric.load(tmp_path / "r.yaml")
