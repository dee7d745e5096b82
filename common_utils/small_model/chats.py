"""People's chats as questions and replies: spelt as one speaks, and only replies that fit.

A reply of a person is kept where a voice assistant could give it: it asks back or says what it
makes of what was told, and it tells nothing of a life that the assistant does not have.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from common_utils.small_model.texts import Conversation
from common_utils.small_model.topics import sentence, words, words_of

QUESTION_WORDS, REPLY_WORDS = (2, 18), (4, 14)
KNOWN = 20  # times that people write a word: what is rarer is often a slip
_NOISE = re.compile(
    r"\b(?:lol|lmao|rofl|haha\w*|hehe\w*|xd|omg|hmm+|umm*|uhh*|ahh*|ooh+|oo+)\b[,!.]*|"
    r"[:;=][-']?[)(DPpOo/\\|]+|[()]|<3|\^\^",
    re.IGNORECASE,
)
_TIDY = (
    (re.compile(r"\.{2,}"), "."),
    (re.compile(r"([!?]){2,}"), r"\1"),
    (re.compile(r"\s+([,.!?])"), r"\1"),
    (re.compile(r"\s+"), " "),
)
_TOKEN = re.compile(r"[A-Za-z']+")
_SPOKEN = re.compile(r"[A-Za-z ,.!?'-]+")
# What only a person can say of himself, and talk about the chat itself.
_LIFE = re.compile(
    r"\b(?:my|mine|myself|we|we're|we've|our|us|ours|me too|byu|utah|provo|"
    r"mission|prompt|chat\w*|typing|conversation|topic|points?|study|class(?:es)?|"
    r"semester|major\w*|"
    r"i (?:am|was|have|had|went|go|live|work|lived|worked|got|just|grew|ate|eat|watch\w*|play\w*|"
    r"read|took|take|did|do|saw|study|studied|drive|served|learned|took|made|usually|always|never|"
    r"used|don't|can't|didn't|haven't|need|want|tried|started|moved|love|like|loved|liked|really|"
    r"wish|actually|also|still|only|even|miss|ran|run|met|bought|buy|feel|felt|hate|wanted|enjoy|"
    r"prefer|mean|totally|probably|definitely|honestly|could|can)|"
    r"i'm|i've|i'd|i'll)\b",
    re.IGNORECASE,
)
# What a listener says: he asks back, or says what he makes of it.
_LEAD = re.compile(
    r"\A(?:(?:yeah|yes|oh|ah|haha|well|okay|ok|ya|ooh|aw+|sweet|right|true|hey|so|and|but)\b"
    r"[,.! ]*)+",
    re.IGNORECASE,
)
_LISTENS = re.compile(
    r"(?:that|it|it's|that's|this|how|what|you|your|you're|good|great|nice|cool|awesome|amazing|"
    r"sounds|congrat\w*|fun|sorry|hopefully|maybe|i (?:hope|bet|think|imagine|wonder|see|agree))\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=[a-z,] )(?!I\b)[A-Z][a-z']+")
_SLANG = re.compile(
    r"\b(?:dude|bro|man|yo|yep|yup|nah|nope|gotcha|dang|wow|huh|super|kk?|idk|tbh|btw|"
    r"ppl|def|prob|sup|hbu|wbu|ikr)\b",
    re.IGNORECASE,
)


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
