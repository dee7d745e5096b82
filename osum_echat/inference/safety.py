"""Crisis and abuse are answered by rule, before a small LLM is asked: `safety` in model.yaml.

The rules of a language lie beside this file: what must be said, in patterns of plain words, and
the replies. They catch the plain cases and let everyday talk pass; they do not replace a model
that has learnt better.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from osum_echat.errors import ConfigError
from osum_echat.settings import read_mapping
from osum_echat.thinking import as_heard

FILES = {"english": Path(__file__).with_name("safety.yaml")}
WHOLE = (                               # contractions as two words, sloppy spellings as usual ones
    (re.compile(r"\bcan'?t\b|\bcannot\b"), "can not"), (re.compile(r"\bwon'?t\b"), "will not"),
    (re.compile(r"(?<=\w)n't\b"), " not"), (re.compile(r"\bdont\b"), "do not"),
    (re.compile(r"\bi'?m\b"), "i am"), (re.compile(r"(?<=\w)'re\b"), " are"),
    (re.compile(r"(?<=\w)'ve\b"), " have"), (re.compile(r"(?<=\w)'ll\b"), " will"),
    (re.compile(r"\b(he|she|it|what|there|that|who)'s\b"), r"\1 is"),
    (re.compile(r"\bwanna\b"), "want to"), (re.compile(r"\bgonna\b"), "going to"),
    (re.compile(r"\bmy self\b"), "myself"), (re.compile(r"\bu\b"), "you"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said by rule, and in which style."""

    kind: str
    text: str
    style: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of what may be said, and the replies to it."""

    kind: str
    patterns: tuple[re.Pattern[str], ...]
    replies: tuple[str, ...]
    style: str


@lru_cache(maxsize=len(FILES))
def rules(language: str) -> tuple[Rule, ...]:
    """Those of a language, in the order in which they are asked. Raises ConfigError."""
    if language not in FILES:
        raise ConfigError(f"safety {language!r}: choose one of {', '.join(FILES)}, or leave it out")
    raw = read_mapping(FILES[language])
    return tuple(_rule(kind, one, raw["sets"]) for kind, one in raw["kinds"].items())


def _rule(kind: str, raw: Mapping[str, Any], sets: Mapping[str, str]) -> Rule:
    named = {name: pattern for name, pattern in sets.items() if "{" not in pattern}
    patterns = tuple(re.compile(one.format(**named) if "{" in one else one) for one in raw["match"])
    return Rule(kind, patterns, tuple(raw["reply"]), raw["style"])


def plain(text: str) -> str:
    """Lower-case words without marks, contractions written out."""
    words = text.lower().replace("’", "'")
    for pattern, whole in WHOLE:
        words = pattern.sub(whole, words)
    return as_heard(words)


def answer(language: str | None, text: str, seed: int = 0) -> Answer | None:
    """The reply to what somebody said, None: no rule is for it. seed: which of several replies."""
    if language is None or not text:
        return None
    said = plain(text)
    for rule in rules(language):
        if any(pattern.search(said) for pattern in rule.patterns):
            return Answer(rule.kind, Random(f"{seed} {said}").choice(rule.replies), rule.style)
    return None
