"""People's chats as questions and replies: spelt as one speaks, and only replies that fit.

A reply of a person is kept where a voice assistant could give it: it asks back or says what it
makes of what was told, and it tells nothing of a life that the assistant does not have.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from common_utils.small_model.texts import Conversation
from common_utils.small_model.topics import any_of, sentence, words, words_of

QUESTION_WORDS, REPLY_WORDS = (2, 18), (4, 14)
KNOWN = 20  # times that people write a word: what is rarer is often a slip
_NOISE = re.compile(
    rf"\b(?:{any_of('noise')})\b[,!.]*|[:;=][-']?[)(DPpOo/\\|]+|[()]|<3|\^\^", re.IGNORECASE
)
_TIDY = (
    (re.compile(r"\.{2,}"), "."),
    (re.compile(r"([!?]){2,}"), r"\1"),
    (re.compile(r"\s+([,.!?])"), r"\1"),
    (re.compile(r"\s+"), " "),
)
_TOKEN = re.compile(r"[A-Za-z']+")
_SPOKEN = re.compile(r"[A-Za-z ,.!?'-]+")
_LIFE = re.compile(rf"\b(?:{any_of('life')}|i (?:{any_of('life_of_i')}))\b", re.IGNORECASE)
_LEAD = re.compile(rf"\A(?:(?:{any_of('lead')})\b[,.! ]*)+", re.IGNORECASE)
_LISTENS = re.compile(rf"(?:{any_of('listens')})\b", re.IGNORECASE)
_NAME = re.compile(r"(?<=[a-z,] )(?!I\b)[A-Z][a-z']+")
_SLANG = re.compile(rf"\b(?:{any_of('slang')})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one wrote and the other answered. conversation: its key; place: of the turn in it."""

    conversation: str
    place: int
    question: str
    reply: str


def spoken(message: str) -> str:
    """A message as one would say it: without smileys and laughter, common slips mended."""
    text = _NOISE.sub(" ", message.replace("’", "'").replace("“", "").replace("”", ""))
    known = words("lexicon")["spellings"]
    text = _TOKEN.sub(
        lambda found: "I" if found[0] == "I" else known.get(found[0].lower(), found[0]), text
    )
    for pattern, better in _TIDY:
        text = pattern.sub(better, text)
    text = text.strip(" ,.-")
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". ")) if text else ""


def questions(conversations: Iterable[Conversation]) -> Iterator[tuple[str, int, str]]:
    """Conversation key, place and text of each turn's last message that can be said aloud."""
    for one in conversations:
        for place, turn in enumerate(one.turns):
            for text in map(spoken, turn[-1:]):
                size = len(text.split())
                if QUESTION_WORDS[0] <= size <= QUESTION_WORDS[1] and _SPOKEN.fullmatch(text):
                    yield one.key, place, text


def exchanges(conversations: Sequence[Conversation]) -> Iterator[Exchange]:
    """What people told, and the replies to it that a voice assistant could give."""
    turns = {one.key: one.turns for one in conversations}
    counts = Counter(word for one in conversations for turn in one.turns
                     for word in words_of(" ".join(turn)))  # fmt: skip
    for key, place, question in questions(conversations):
        following = turns[key][place + 1 : place + 2]
        for message in following[0][:1] if following and mood_of(question) != "ask" else ():
            reply = _LEAD.sub("", spoken(message), count=1)
            size = len(reply.split())
            if not (REPLY_WORDS[0] <= size <= REPLY_WORDS[1] and _SPOKEN.fullmatch(reply)):
                continue
            if _LIFE.search(reply) or _SLANG.search(reply):
                continue
            if min(counts[word] for word in words_of(reply)) < KNOWN:
                continue
            if reply.lower().startswith(_ASKING):
                reply = reply.rstrip(".") + ("" if reply[-1] in "?!" else "?")
            asks_or_listens = reply.endswith("?") or _LISTENS.match(reply)
            if asks_or_listens and {*_NAME.findall(reply)} <= {*_NAME.findall(question)}:
                yield Exchange(key, place, question, sentence(reply[:1].upper() + reply[1:]))


_ASKING = ("what", "how", "why", "do ", "are ", "is ", "who", "where", "have ", "did ", "when",
           "can ", "which")  # fmt: skip
_ASKS = re.compile(
    r"\?|^(?:do|are|did|have|what|how|why|who|where|when|which|is|can|could|would|will) ",
    re.IGNORECASE,
)


def mood_of(message: str) -> str:
    """good, bad, ask or plain, by its words alone."""
    said = set(words_of(message))
    if _ASKS.search(message):
        return "ask"
    good, bad = (len(said.intersection(words("lexicon")[mood].split())) for mood in ("good", "bad"))
    negated = bool(said & {"not", "never", "don't", "isn't", "wasn't", "no"})
    if good > bad and not negated:
        return "good"
    return "bad" if bad > good and not negated else "plain"
