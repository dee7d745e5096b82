"""The texts that the small model learns from, and which of them are kept for tests.

People's chats (chitchat-dataset), WordNet's example sentences and the tiny world's. What is held
out is decided by a hash, the same on every machine: a tenth of the chats, whole conversations.

Chats are also read as questions and replies, spelt as one speaks. A reply of a person is kept where
a voice assistant could give it: it asks back or says what it makes of what was told, and it tells
nothing of a life that the assistant does not have.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common_utils.small_model import topics
from common_utils.small_model.topics import any_of, words_of
from common_utils.tiny_world.world import fraction, load_world
from osum_echat.errors import DataError

CHITCHAT_FILE = "chitchat/chitchat_dataset/dataset.json"
WORDNET_FOLDER = "wordnet"
HELD_OUT_SHARE = 0.1
WORLD_EXCHANGES = 4000
# Kokoro's voices that nothing is trained on, alone or mixed.
HELD_OUT_VOICES = ("af_nova", "af_sarah", "am_eric", "am_puck", "bf_emma", "bm_george")
LONGEST_WORD = 20  # letters
UNWANTED = re.compile(rf"\b({any_of('unwanted')})\b", re.IGNORECASE)
PRIVATE = re.compile(
    r"@|https?:|www\.|\.(com|net|org|io|edu|gov)\b|\d{4,}|\d{3}[ -]\d{3}"
    rf"|\b({any_of('private')})\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_PLAIN = re.compile(r"[A-Za-z0-9 ,.!?'-]+")
_RUN = re.compile(r"(.)\1{2,}", re.IGNORECASE)
_EXAMPLE = re.compile(r'"([^"]+)"')
_SPACES = re.compile(r"\s+")
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
_ASKING = ("what", "how", "why", "do ", "are ", "is ", "who", "where", "have ", "did ", "when",
           "can ", "which")  # fmt: skip
_ASKS = re.compile(
    r"\?|^(?:do|are|did|have|what|how|why|who|where|when|which|is|can|could|would|will) ",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """People's chat. turns: what one and the other wrote, each a list of messages in order."""

    key: str
    turns: tuple[tuple[str, ...], ...]
    held_out: bool


def is_clean(text: str) -> bool:
    """Whether a message holds neither insults nor anybody's private data."""
    return not UNWANTED.search(text) and not PRIVATE.search(text)


@lru_cache(maxsize=1)
def conversations(parts: Path) -> tuple[Conversation, ...]:
    """All conversations of chitchat-dataset, without the messages that are not clean.

    parts: the folder that parts.py unpacks to. A turn without clean messages ends what is used of
    a conversation. Raises DataError where the file is missing.
    """
    path, found = parts / CHITCHAT_FILE, []
    if not path.is_file():
        raise DataError(f"{path}: missing; run common_utils.small_model.parts")
    for key, raw in json.loads(path.read_text("utf-8")).items():
        turns = []
        for turn in raw["messages"]:
            messages = tuple(_SPACES.sub(" ", one["text"]).strip() for one in turn)
            if not all(map(is_clean, messages)):
                break
            turns.append(tuple(message for message in messages if message))
        found.append(Conversation(key, tuple(turns), fraction(f"chitchat {key}") < HELD_OUT_SHARE))
    return tuple(found)


def chat_sentences(parts: Path, held_out: bool, words: tuple[int, int] = (3, 14)) -> list[str]:
    """Different clean sentences from the chats, in a fixed order.

    held_out: those of the held-out conversations that no other conversation holds, or else those
    of the others. words: how many words a sentence has, from and to.
    """
    ours: dict[str, str] = {}
    others: set[str] = set()
    for conversation in conversations(parts):
        for turn in conversation.turns:
            for message in turn:
                for sentence in sentences_of(message, words):
                    if conversation.held_out == held_out:
                        ours.setdefault(sentence.lower(), sentence)
                    else:
                        others.add(sentence.lower())
    kept = [one for low, one in ours.items() if not held_out or low not in others]
    return sorted(kept, key=lambda one: fraction(f"order {one}"))


def sentences_of(message: str, words: tuple[int, int] = (3, 14)) -> Iterator[str]:
    """The sentences of a message that can be read aloud as they stand."""
    for sentence in _SENTENCE_END.split(message.replace("’", "'").replace("…", ".")):
        sentence = sentence.strip(" -")
        count = len(sentence.split())
        if (
            words[0] <= count <= words[1]
            and _PLAIN.fullmatch(sentence)
            and not _RUN.search(sentence.replace("...", "."))
            and max(map(len, sentence.split())) <= LONGEST_WORD
        ):
            yield sentence


def wordnet_sentences(parts: Path, words: tuple[int, int] = (2, 16)) -> list[str]:
    """Different clean example sentences of WordNet, in a fixed order."""
    folder = parts / WORDNET_FOLDER
    found: dict[str, None] = {}
    for kind in ("adj", "adv", "noun", "verb"):
        path = folder / f"data.{kind}"
        if not path.is_file():
            raise DataError(f"{path}: missing; run common_utils.small_model.parts")
        for line in path.read_text("latin-1").splitlines():
            for example in _EXAMPLE.findall(line.partition(" | ")[2]):
                for sentence in sentences_of(example, words):
                    if is_clean(sentence):
                        found.setdefault(sentence)
    return sorted(found, key=lambda one: fraction(f"order {one}"))


def world_sentences(split: str = "train", size: int = WORLD_EXCHANGES) -> list[str]:
    """Different sentences that people of the tiny world say, in a fixed order."""
    found: dict[str, None] = {}
    for exchange in load_world().exchanges(split, 0, size):
        for said in (*(turn.user_text for turn in exchange.turns), exchange.user_text):
            found.setdefault(said)
    return sorted(found, key=lambda one: fraction(f"order {one}"))


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
    known = topics.words("lexicon")["spellings"]
    text = _TOKEN.sub(
        lambda found: "I" if found[0] == "I" else known.get(found[0].lower(), found[0]), text
    )
    for pattern, better in _TIDY:
        text = pattern.sub(better, text)
    text = text.strip(" ,.-")
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". ")) if text else ""


def messages(conversations: Iterable[Conversation]) -> Iterator[tuple[str, int, str]]:
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
    for key, place, question in messages(conversations):
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
                yield Exchange(key, place, question, topics.sentence(reply[:1].upper() + reply[1:]))


def mood_of(message: str) -> str:
    """good, bad, ask or plain, by its words alone."""
    said = set(words_of(message))
    if _ASKS.search(message):
        return "ask"
    lexicon = topics.words("lexicon")
    good, bad = (len(said.intersection(lexicon[mood].split())) for mood in ("good", "bad"))
    negated = bool(said & {"not", "never", "don't", "isn't", "wasn't", "no"})
    if good > bad and not negated:
        return "good"
    return "bad" if bad > good and not negated else "plain"
