"""The words of the tiny world: who says what, which replies are right, and in which style.

A reply is an opener (by sound event, else by emotion, with an address word for the speaker)
and a core line (by situation and emotion), so that the words alone never settle it.
"""
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random
from string import Template
from typing import Any, Protocol

from osum_echat.errors import DataError
from osum_echat.settings import read_mapping

AGES = ("CHILD", "ADULT", "OLD")
GENDERS = ("MALE", "FEMALE")
EMOTIONS = ("NEUTRAL", "HAPPY", "SAD", "ANGER", "SURPRISE")
STYLES = ("CALM", "CHEERFUL", "SOFT", "BRISK")
_TABLE = read_mapping(Path(__file__).with_name("manner.yaml"))
EVENTS: dict[str, dict[str, float]] = _TABLE["events"]
PERSONS: dict[tuple[str, ...], str] = {
    tuple(cell.split()): person for cell, person in _TABLE["persons"].items()
}
PRONOUNS: dict[str, dict[str, str]] = _TABLE["pronouns"]
FEELINGS: dict[str, str] = _TABLE["feelings"]
SOUNDS: dict[str, str] = _TABLE["sounds"]
MANNERS: dict[str, str] = _TABLE["manners"]
THOUGHTS: list[str] = _TABLE["thoughts"]

SITUATIONS = Path(__file__).parent / "situations"
SPLITS = ("train", "test")
TEST_SHARE = 0.15
KIND_SHARES = {"single": 0.72, "dialogue": 0.20, "identity": 0.08}
FIRST_TURN_SHARE = 0.06                  # of the single turns: first turns of a dialogue
IDENTITY_EMOTIONS = ("NEUTRAL", "HAPPY", "SURPRISE")
TEXT_OPENER = "I see, my friend."        # in writing there is no voice to go by
ECHO = "Ah, the $thing."                 # shows that a filling was heard


class Heard(Protocol):
    """What the reply style is taken from."""
    @property
    def emotion(self) -> str | None: ...
    @property
    def event(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Traits:
    """What the voice of one turn tells."""
    age: str
    gender: str
    emotion: str
    event: str


def style_for(labels: Heard) -> str:
    """CALM, CHEERFUL, SOFT or BRISK, by the event, or else the emotion."""
    styles, emotion = _TABLE["emotion_styles"], labels.emotion or "NEUTRAL"
    if emotion not in styles:
        raise DataError(f"emotion {emotion!r}: not one of {', '.join(styles)}")
    return str(_TABLE["event_styles"].get(labels.event) or styles[emotion])


def address(age: str, gender: str) -> str:
    """The word by which a speaker is addressed."""
    if age == "OLD":
        return "sir" if gender == "MALE" else "madam"
    return "little one" if age == "CHILD" else "my friend"


def opener(labels: Traits) -> str:
    """The first sentence of a reply."""
    wording = _TABLE["event_openers"].get(labels.event)
    wording = wording or _TABLE["emotion_openers"][labels.emotion]
    return Template(wording).substitute(you=address(labels.age, labels.gender))


def natural_thought(labels: Traits, gist: str, variant: int = 0) -> str:
    """The thought in plain words; `gist`: its clause about what was said, `variant` 0 to 2."""
    person = f"a {FEELINGS[labels.emotion]} {PERSONS[labels.age, labels.gender]}"
    return with_articles(Template(THOUGHTS[variant]).substitute(
        person=person, sound=SOUNDS[labels.event], gist=gist, Gist=gist[0].upper() + gist[1:],
        manner=MANNERS[style_for(labels)]))


def with_articles(text: str) -> str:
    """`a` before a vowel becomes `an`."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


@dataclass(frozen=True, slots=True)
class Line:
    """One turn of a script: what may be said, and the core lines of the reply by emotion."""
    say: tuple[str, ...]
    gist: str
    cores: Mapping[str, tuple[str, ...]]
    echo: bool = False                   # the reply repeats the filling before any core line

    def cores_for(self, emotion: str) -> tuple[str | None, ...]:
        """The core lines that answer `emotion`; None: the repeated filling is all of it."""
        return self.cores.get(emotion) or ((None,) if self.echo and not self.cores else ())

    @property
    def names_filling(self) -> bool:
        """Whether replies hold the filling."""
        return self.echo or any("$thing" in core for cores in self.cores.values() for core in cores)


@dataclass(frozen=True, slots=True)
class Situation:
    """A script of one to three turns; all turns share one filling. `opener`: none for identity."""
    name: str
    emotions: tuple[str, ...]
    turns: tuple[Line, ...]
    slot: str | None = None
    opener: bool = True


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """One turn as it was said and answered."""
    user_text: str
    labels: Traits
    reply_text: str
    reply_sentences: tuple[str, ...]
    reply_style: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One item of the corpus, still without sound. `turns`: the earlier turns of a dialogue."""
    key: str
    kind: str
    situation: str
    filling: str | None
    user_text: str
    labels: Traits
    reply_text: str
    reply_sentences: tuple[str, ...]
    reply_style: str
    thought: str
    turns: tuple[SaidTurn, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The corpus fields that the words decide; voice and wav names are added by the maker."""
        raw = asdict(self)
        for turn in (raw, *raw["turns"]):
            turn["reply_sentences"] = list(turn["reply_sentences"])
        return raw | {"turns": list(raw["turns"])}


def normalise(text: str) -> str:
    """Lower case, letters, digits and single spaces only."""
    return " ".join(re.sub(r"[^a-z0-9 ]+", " ", text.lower().replace("'", "")).split())


class World:
    """All situations, dialogue scripts and identity questions, with their fillings."""

    def __init__(self, situations: Sequence[Situation], dialogues: Sequence[Situation],
                 identities: Sequence[Situation], fillings: Mapping[str, tuple[str, ...]]):
        self.situations = tuple(situations)
        self.dialogues = tuple(dialogues)
        self.identities = tuple(identities)
        self.fillings = dict(fillings)
        self._by_name = {item.name: item for item in (*situations, *dialogues, *identities)}
        counts = Counter(e for item in self.situations for e in item.emotions)
        self._emotion_weight = {e: 1 / counts[e] if counts[e] else 1.0 for e in EMOTIONS}

    def fillings_of(self, situation: Situation, split: str) -> tuple[str, ...]:
        """The fillings that `situation` may have in a split; () without a slot."""
        if situation.slot is None:
            return ()
        every = self.fillings[situation.slot]
        if " " in every[0]:
            held_out = {text for text in every if fraction(text) < TEST_SHARE}
        else:
            rivals = [item.name for item in self.dialogues if item.slot == situation.slot]
            held_out = _held_out(every, rivals.index(situation.name))
        return tuple(text for text in every if (text in held_out) == (split == "test"))

    def exchanges(self, split: str, seed: int, size: int) -> Iterator[Exchange]:
        """`size` exchanges; the first ones of a larger size are the same."""
        for index in range(size):
            rng = Random(f"{split}:{seed}:{index}")
            kind = rng.choices(tuple(KIND_SHARES), weights=tuple(KIND_SHARES.values()))[0]
            situation = rng.choice({"single": self.situations, "dialogue": self.dialogues,
                                    "identity": self.identities}[kind])
            length = len(situation.turns)
            if kind == "single" and rng.random() < FIRST_TURN_SHARE:
                situation, length = rng.choice(self.dialogues), 1
            yield self._exchange(f"{split}-{seed}-{index:06d}", kind, situation, length, split, rng)

    def right_replies(self, exchange: Mapping[str, Any]) -> set[str]:
        """Every right reply to a corpus object, normalised."""
        situation, line = self._line(exchange)
        labels = Traits(**exchange["labels"])
        return {normalise(" ".join(sentences)) for sentences in _replies(
            situation, line, labels.emotion, exchange["filling"], labels)}

    def right_text_replies(self, exchange: Mapping[str, Any]) -> set[str]:
        """Every right reply to the written words alone: any mood's core line, normalised."""
        situation, line = self._line(exchange)
        return {normalise(" ".join(sentences)) for emotion in situation.emotions
                for sentences in _replies(situation, line, emotion, exchange["filling"])}

    def text_reply(self, exchange: Mapping[str, Any]) -> str:
        """The reply to the written words that is taught: the situation's main mood."""
        situation, line = self._line(exchange)
        emotion = situation.emotions[0]
        return " ".join(next(_replies(situation, line, emotion, exchange["filling"])))

    def all_reply_sentences(self, split: str = "train") -> Iterator[tuple[str, str]]:
        """Every (sentence, style) that replies of a split are made of, each once."""
        seen: set[tuple[str, str]] = set()
        for situation in self._by_name.values():
            voices = [Traits(age, gender, emotion, event)
                      for age, gender in PERSONS for emotion in situation.emotions
                      for event in EVENTS[emotion]]
            fillings = self.fillings_of(situation, split) or (None,)
            pairs = ((sentence, style_for(labels)) for line in situation.turns
                     for filling in (fillings if line.names_filling else fillings[:1])
                     for labels in voices
                     for sentences in _replies(situation, line, labels.emotion, filling, labels)
                     for sentence in sentences)
            for pair in pairs:
                if pair not in seen:
                    seen.add(pair)
                    yield pair

    def _line(self, exchange: Mapping[str, Any]) -> tuple[Situation, Line]:
        name = exchange["situation"]
        if name not in self._by_name:
            raise DataError(f"exchange {exchange.get('key')}: no situation {name!r};"
                            " make the corpus again with this version")
        situation = self._by_name[name]
        return situation, situation.turns[len(exchange["turns"])]

    def _exchange(self, key: str, kind: str, situation: Situation, length: int, split: str,
                  rng: Random) -> Exchange:
        filling = rng.choice(self.fillings_of(situation, split)) if situation.slot else None
        wordings = self._wordings(situation, length, split, rng)
        age, gender = rng.choice(AGES), rng.choice(GENDERS)
        said = []
        for line, words in zip(situation.turns, wordings, strict=False):
            labels = Traits(age, gender, *self._mood(situation, rng))
            right = _replies(situation, line, labels.emotion, filling, labels)
            sentences = rng.choice(list(right))
            said.append(SaidTurn(_sentence(words, filling), labels, " ".join(sentences), sentences,
                                 style_for(labels)))
        last, gist = said.pop(), _fill(situation.turns[length - 1].gist, filling, gender)
        return Exchange(key, kind, situation.name, filling, last.user_text, last.labels,
                        last.reply_text, last.reply_sentences, last.reply_style,
                        natural_thought(last.labels, gist, rng.randrange(len(THOUGHTS))),
                        tuple(said))

    def _wordings(self, situation: Situation, length: int, split: str,
                  rng: Random) -> tuple[str, ...]:
        """What is said in the first `length` turns. Dialogues without a slot hold out wordings."""
        every = list(product(*(line.say for line in situation.turns)))
        if length > 1 and not situation.slot:
            held_out = _held_out(["|".join(words) for words in every])
            every = [w for w in every if ("|".join(w) in held_out) == (split == "test")]
        return rng.choice(every)[:length]

    def _mood(self, situation: Situation, rng: Random) -> tuple[str, str]:
        weights = [self._emotion_weight[emotion] for emotion in situation.emotions]
        emotion = rng.choices(situation.emotions, weights=weights)[0]
        events = EVENTS[emotion]
        return emotion, rng.choices(tuple(events), weights=tuple(events.values()))[0]


def load_world(directory: Path = SITUATIONS) -> World:
    """Read every situation file of `directory`."""
    raw = {path.stem: read_mapping(path) for path in sorted(directory.glob("*.yaml"))}
    talk, slots, identity = raw.pop("dialogues"), raw.pop("slots"), raw.pop("identity")
    fillings = {name: tuple(f"{adjective} {noun}" for adjective, noun in
                            product(slot["adjectives"], slot["nouns"]))
                for name, slot in slots.items()}
    fillings |= {name: tuple(words) for name, words in talk["lists"].items()}
    situations = [
        Situation(name, tuple(item["reply"]), (_line(item, tuple(item["reply"])),),
                  item.get("slot"))
        for file in raw.values() for name, item in file.items()]
    dialogues = [
        Situation(name, tuple(item["emotions"]), tuple(
            _line(turn, tuple(item["emotions"]), talk["questions"])
            for turn in item["turns"]), item.get("slot"))
        for name, item in talk["scripts"].items()]
    identities = [
        Situation(name, IDENTITY_EMOTIONS, (_line(item, IDENTITY_EMOTIONS),), opener=False)
        for name, item in identity.items()]
    return World(situations, dialogues, identities, fillings)


def _line(item: Mapping[str, Any], emotions: Sequence[str],
          questions: Mapping[str, list[str]] | None = None) -> Line:
    """One turn out of its YAML; `say` may name a shared list of questions, as `$advice`."""
    say = item["say"]
    if isinstance(say, str):
        say = (questions or {})[say.removeprefix("$")]
    reply = item.get("reply", {})        # none: the filling itself is the answer
    by_mood = reply if isinstance(reply, dict) else dict.fromkeys(emotions, reply)
    cores = {emotion: (core,) if isinstance(core, str) else tuple(core)
             for emotion, core in by_mood.items()}
    return Line(tuple(say), item["gist"], cores, bool(item.get("echo")))


def _replies(situation: Situation, line: Line, emotion: str, filling: str | None,
             labels: Traits | None = None) -> Iterator[tuple[str, ...]]:
    """The sentences of every right reply; labels: of the voice, None: the words are written."""
    first = (opener(labels) if labels else TEXT_OPENER,) if situation.opener else ()
    echo = (_sentence(ECHO, filling),) if line.echo else ()
    for core in line.cores_for(emotion):
        yield (*first, *echo, *(() if core is None else (_sentence(core, filling),)))


def _sentence(wording: str, filling: str | None) -> str:
    """A wording as a sentence: filled, with a capital and a full stop."""
    text = _fill(wording, filling)
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


@lru_cache(maxsize=4096)
def _fill(wording: str, filling: str | None, gender: str = "MALE") -> str:
    values = PRONOUNS[gender] | ({} if filling is None else {"thing": filling})
    return with_articles(Template(wording).substitute(values))


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(sha256(text.encode()).digest()[:6], "big") / 2**48


def _held_out(every: Sequence[str], rank: int = 0) -> set[str]:
    """The part of a closed list kept for the test split; never empty, never all.

    rank: of a script among those that share the list, so that each holds out another part.
    """
    ranked = sorted(every, key=fraction)
    count = max(1, round(TEST_SHARE * len(ranked)))
    return {ranked[(rank * count + step) % len(ranked)] for step in range(count)}
