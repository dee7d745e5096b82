"""People's chats as questions and replies: spelt as one speaks, and only replies that fit.

A reply of a person is kept where a voice assistant could give it: it tells nothing of a life that
the assistant does not have, and its words go with those of the question more often than by chance.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from common_utils.small_model.reply_filters import content_words, words_of
from common_utils.small_model.texts import Conversation
from common_utils.small_model.topics import sentence, words

QUESTION_WORDS, REPLY_WORDS = (2, 18), (4, 20)
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
    """Questions and the replies to them that a voice assistant could give."""
    turns = {one.key: one.turns for one in conversations}
    for key, place, question in questions(conversations):
        following = turns[key][place + 1 : place + 2]
        for message in following[0][:1] if following else ():
            reply = spoken(message)
            size = len(reply.split())
            if not (REPLY_WORDS[0] <= size <= REPLY_WORDS[1] and _SPOKEN.fullmatch(reply)):
                continue
            if _LIFE.search(reply) or _SLANG.search(reply):
                continue
            if reply.lower().startswith(_ASKING):
                reply = reply.rstrip(".") + ("" if reply[-1] in "?!" else "?")
            yield Exchange(key, place, question, sentence(reply))


class Association:
    """How much more often words of a reply follow words of a question than by chance."""

    def __init__(self, pairs: Iterable[tuple[str, str]], least: int = 3) -> None:
        """pairs: questions and replies, of many conversations; least: rarer pairs do not count."""
        self.least = least
        self.together: Counter[tuple[str, str]] = Counter()
        self.asked: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.count = 0
        for question, reply in pairs:
            ours, theirs = content_words(question), content_words(reply)
            self.together.update((one, other) for one in ours for other in theirs)
            self.asked.update(ours)
            self.said.update(theirs)
            self.count += 1

    def lift(self, question: str, reply: str) -> float:
        """The mean over the reply's content words of the best log lift; below 0: by chance."""
        ours, theirs = content_words(question), content_words(reply)
        best = [max((self._of(one, other) for one in ours), default=0.0) for other in theirs]
        return sum(best) / len(best) if best else 0.0

    def _of(self, one: str, other: str) -> float:
        both = self.together[one, other]
        if one == other or both < self.least:
            return 0.0
        return math.log(both * self.count / (self.asked[one] * self.said[other]))


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
