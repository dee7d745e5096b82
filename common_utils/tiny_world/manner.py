"""How a voice of the tiny world is answered: the opener, the style, and the thought about it."""
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Protocol

from osum_echat.errors import DataError
from osum_echat.settings import read_mapping

AGES = ("CHILD", "ADULT", "OLD")
GENDERS = ("MALE", "FEMALE")
EMOTIONS = ("NEUTRAL", "HAPPY", "SAD", "ANGER", "SURPRISE")
STYLES = ("CALM", "CHEERFUL", "SOFT", "BRISK")
_TABLE = read_mapping(Path(__file__).with_suffix(".yaml"))
EVENTS: dict[str, dict[str, float]] = _TABLE["events"]
PERSONS: dict[tuple[str, ...], str] = {
    tuple(cell.split()): person for cell, person in _TABLE["persons"].items()
}
PRONOUNS: dict[str, dict[str, str]] = _TABLE["pronouns"]
FEELINGS: dict[str, str] = _TABLE["feelings"]
SOUNDS: dict[str, str] = _TABLE["sounds"]
MANNERS: dict[str, str] = _TABLE["manners"]
THOUGHTS: list[str] = _TABLE["thoughts"]


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
