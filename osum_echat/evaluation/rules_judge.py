"""`rules-v1`: a judge that needs no network and no model, the same on every machine.

It counts words and is no substitute for a chat model or for people: its figures compare systems
and versions under the same rules, and do not compare with the paper's. The rules, each from 0 to
100 (word lists: rubrics/rules-v1.yaml):

relevance    0 without a reply; else 50, and up to 50 more by the share of the user's content words
             that the reply takes up (pairs of characters in Chinese), a third of them being enough.
perception   the mean over the cues that the category tests (all known cues for other categories):
             100 for a word that shows the cue, 50 for none, 10 for one that says the opposite.
             A cue whose list is empty (a neutral voice) asks for nothing.
empathy      40, and 30 for a word that suits the user's emotion, 30 for a word of care; less 40 for
             a word against the emotion; for a neutral or unknown emotion the first 30 are given.
delivery     the table of the user's emotion against the one heard in the reply; left out without.
naturalness  100 less: 40 for left-over tags or markup, 30 for under 3 or over 80 words, 30 by the
             share of repeated word pairs, 10 without an end mark.
An empty reply gets 0 everywhere.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from osum_echat.evaluation.judge import Judged
from osum_echat.evaluation.rubric import RUBRICS, Exhibit, Rubric, Verdict

NAME = "rules-v1"
ENOUGH_TAKEN_UP = 1 / 3
FEWEST_WORDS, MOST_WORDS = 3, 80
_HANZI = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[a-z0-9']+|[\u4e00-\u9fff]")
_MARKUP = re.compile(r"<[^<>]*>|\*\*|^#+ |^[-*] |\|.*\|", re.MULTILINE)
_END = (".", "!", "?", "。", "！", "？", "~", "…", '"', "”")


class RulesJudge:
    """The offline judge."""

    name = NAME

    def __init__(self, rubric: Rubric | None = None) -> None:
        self.rubric = rubric or Rubric.load()
        self.rules: dict[str, Any] = yaml.safe_load(
            (RUBRICS / f"{NAME}.yaml").read_text(encoding="utf-8")
        )

    def settings(self) -> dict[str, Any]:
        return {"judge": f"{NAME} (word rules, no model)", "rubric": self.rubric.version}

    def __call__(self, exhibits: Sequence[Exhibit], out: Path) -> Judged:
        """Verdicts of all; nothing is written."""
        return Judged({one.key: self.judge(one) for one in exhibits})

    def judge(self, exhibit: Exhibit) -> Verdict:
        """The verdict on one reply."""
        if not exhibit.reply.strip():
            return self.rubric.verdict(dict.fromkeys(self.rubric.names, 0.0), "no reply")
        scores = {
            "relevance": self._relevance(exhibit),
            "perception": self._perception(exhibit),
            "empathy": self._empathy(exhibit),
            "delivery": self._delivery(exhibit),
            "naturalness": _naturalness(exhibit.reply),
        }
        return self.rubric.verdict(scores, NAME)

    def _relevance(self, exhibit: Exhibit) -> float:
        asked = self._content(exhibit.transcript)
        if not asked:
            return 100.0
        taken_up = len(asked & self._content(exhibit.reply)) / len(asked)
        return 50.0 + 50.0 * min(1.0, taken_up / ENOUGH_TAKEN_UP)

    def _content(self, text: str) -> set[str]:
        """The words that tell what a text is about: stems, and pairs of characters."""
        words = _WORD.findall(text.lower())
        pairs = {a + b for a, b in zip(words, words[1:], strict=False)
                 if _HANZI.match(a) and _HANZI.match(b)}  # fmt: skip
        plain = set(self.rules["plain"])
        return pairs | {_stem(word) for word in words if word not in plain and len(word) > 1}

    def _perception(self, exhibit: Exhibit) -> float:
        cues = exhibit.cues
        tested = {exhibit.category: cues[exhibit.category]} if exhibit.category in cues else cues
        marks = []
        for cue, value in tested.items():
            words = self.rules["cues"].get(cue, {}).get(value.upper())
            if not words:
                continue
            against = self.rules["contrary"].get(cue, {}).get(value.upper(), ())
            noticed = 100.0 if _holds(exhibit.reply, words) else 50.0
            marks.append(10.0 if _holds(exhibit.reply, against) else noticed)
        return sum(marks) / len(marks) if marks else 100.0

    def _empathy(self, exhibit: Exhibit) -> float:
        emotion = (exhibit.labels.emotion or "NEUTRAL").upper()
        suiting = self.rules["cues"]["emotion"].get(emotion) or ()
        score = 40.0
        score += 30.0 * (not suiting or _holds(exhibit.reply, suiting))
        score += 30.0 * _holds(exhibit.reply, self.rules["care"])
        against = self.rules["contrary"]["emotion"].get(emotion, ())
        return max(0.0, score - 40.0 * _holds(exhibit.reply, against))

    def _delivery(self, exhibit: Exhibit) -> float | None:
        table = self.rules["delivery"].get((exhibit.labels.emotion or "NEUTRAL").upper())
        if exhibit.reply_emotion is None or table is None:
            return None
        return float(table.get(exhibit.reply_emotion.upper(), table["other"]))


def _naturalness(reply: str) -> float:
    words = _WORD.findall(reply.lower())
    pairs = list(zip(words, words[1:], strict=False))
    repeated = 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
    score = 100.0 - 30.0 * repeated
    score -= 40.0 * bool(_MARKUP.search(reply))
    score -= 30.0 * (not FEWEST_WORDS <= len(words) <= MOST_WORDS)
    score -= 10.0 * (not reply.rstrip().endswith(_END))
    return max(0.0, score)


def _holds(text: str, words: Sequence[str]) -> bool:
    """Whether any of the words stands in the text."""
    lowered = text.lower()
    return any(
        word in lowered if _HANZI.search(word) else bool(_pattern(word).search(lowered))
        for word in words
    )


@cache
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}(?:s|es|ing|ed)?\b")


def _stem(word: str) -> str:
    """Without the commonest endings: `kites` and `kite` are one."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
