"""What people talk about, and hand-written replies to it: read from replies/*.yaml."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from string import Template
from typing import Any

from osum_echat.errors import DataError
from osum_echat.settings import read_mapping

FOLDER = Path(__file__).parent / "replies"
WORDS = Path(__file__).parent / "words"
ANY = "any"
MOODS = ("good", "bad", "plain", "ask")
STRONG = frozenset({"death", "crime"})  # of words that settle what is meant
_WORD = re.compile(r"[a-z']+")


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic or act. pattern: what calls for it; is_act: a whole message, not a word in it.

    gist: what $he says, for a thought; say, replies: by mood, one of MOODS.
    """

    name: str
    pattern: re.Pattern[str]
    is_act: bool
    gist: str
    say: Mapping[str, tuple[str, ...]]
    replies: Mapping[str, tuple[str, ...]]

    def replies_for(self, mood: str) -> tuple[str, ...]:
        """The replies of a mood; without any, the plain ones."""
        return self.replies.get(mood) or self.replies["plain"]


@dataclass(frozen=True, slots=True)
class Found:
    """A topic that a message is about; word: the one that called for it, None for an act."""

    topic: Topic
    word: str | None


@cache
def words(name: str) -> Mapping[str, Any]:
    """The file of that name in words/."""
    return read_mapping(WORDS / f"{name}.yaml")


@cache
def any_of(kind: str) -> str:
    """A pattern of any of the words of that kind in words/chats.yaml."""
    return "|".join(words("chats")[kind].split(" | "))


def words_of(text: str) -> list[str]:
    """Its words in lower case."""
    return _WORD.findall(text.lower().replace("’", "'"))


def bare(text: str) -> str:
    """Its words in lower case with single spaces."""
    return " ".join(words_of(text))


def parts(text: str) -> tuple[str, ...]:
    """`a | b` as a tuple of sentences with capital and stop."""
    return tuple(sentence(part) for part in text.split("|"))


def sentence(text: str) -> str:
    """With a capital first and a stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".?!," else ".")


@lru_cache(maxsize=1)
def topics(folder: Path = FOLDER) -> tuple[Topic, ...]:
    """All topics, in the order of their files. Raises DataError for one without plain replies."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        for name, raw in read_mapping(path).items():
            if "plain" not in raw or not ("words" in raw or "match" in raw):
                raise DataError(f"{path}: {name}: needs `plain`, and `words` or `match`")
            is_act = "match" in raw
            said = raw.get("say") or {}
            own = [bare(text) for texts in said.values() for text in texts.split("|")]
            called = [*raw["match"], *map(re.escape, own)] if is_act else map(
                re.escape, raw["words"])  # fmt: skip
            choices = "|".join(called)
            found.append(Topic(
                name=str(name), is_act=is_act, gist=raw["gist"],
                pattern=re.compile(choices if is_act else rf"\b({choices})\b"),
                say={mood: parts(text) for mood, text in said.items()},
                replies={mood: parts(raw[mood]) for mood in MOODS if mood in raw},
            ))  # fmt: skip
    return tuple(found)


def topic_of(message: str, known: Sequence[Topic] | None = None) -> Found | None:
    """The topic of a message: an act it is, or else the one that most of its words call for.

    Of several, a STRONG one, then one that is not general, then the one named first.
    """
    said, general = bare(message), words("lexicon")["general_topics"].split()
    best: tuple[tuple[bool, bool, int, int], Found] | None = None
    for topic in topics() if known is None else known:
        if topic.name == ANY:
            continue
        if topic.is_act:
            if topic.pattern.fullmatch(said):
                return Found(topic, None)
            continue
        hits = list(topic.pattern.finditer(said))
        if hits:
            is_narrow, calls = topic.name not in general, len({hit[1] for hit in hits})
            rank = topic.name in STRONG, is_narrow, calls, -hits[0].start()
            if best is None or rank > best[0]:
                best = rank, Found(topic, hits[0][1])
    return best[1] if best else None


def filled(text: str, word: str | None) -> str | None:
    """A reply with the word in place of $it; None where it needs one and there is none."""
    if "$it" not in text:
        return text
    return sentence(Template(text).safe_substitute(it=word)) if word else None
