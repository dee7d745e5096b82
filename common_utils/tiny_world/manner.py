"""How a voice of the tiny world is answered: the opener, the style, and the thought about it."""
import re
from dataclasses import dataclass
from string import Template
from typing import Protocol

from osum_echat.errors import DataError

AGES = ("CHILD", "ADULT", "OLD")
GENDERS = ("MALE", "FEMALE")
EMOTIONS = ("NEUTRAL", "HAPPY", "SAD", "ANGER", "SURPRISE")
STYLES = ("CALM", "CHEERFUL", "SOFT", "BRISK")
EVENTS: dict[str, dict[str, float]] = {  # how often each sound event comes with an emotion
    "NEUTRAL": {"OTHER": 0.50, "LAUGH": 0.12, "COUGH": 0.18, "SIGH": 0.20},
    "HAPPY": {"OTHER": 0.50, "LAUGH": 0.34, "COUGH": 0.16},
    "SAD": {"OTHER": 0.50, "CRY": 0.34, "COUGH": 0.08, "SIGH": 0.08},
    "ANGER": {"OTHER": 0.50, "CRY": 0.22, "COUGH": 0.14, "SIGH": 0.14},
    "SURPRISE": {"OTHER": 0.50, "LAUGH": 0.18, "COUGH": 0.14, "SIGH": 0.18},
}
# Styles, feelings and sounds are those of the small model too, which knows more labels.
EVENT_STYLES = {"CRY": "SOFT", "LAUGH": "CHEERFUL", "COUGH": "CALM", "SIGH": "CALM",
                "SNEEZE": "CALM", "SCREAMING": "CALM", "THROAT CLEARING": "CALM", "GROAN": "SOFT"}
EMOTION_STYLES = {"SAD": "SOFT", "HAPPY": "CHEERFUL", "SURPRISE": "BRISK", "ANGER": "CALM",
                  "NEUTRAL": "CALM", "FEAR": "SOFT", "DISGUST": "CALM", "OTHER": "CALM"}
EVENT_OPENERS = {
    "LAUGH": "What a lovely laugh, $you.",
    "CRY": "Please do not cry, $you.",
    "COUGH": "Bless you, $you.",
    "SIGH": "Take a deep breath, $you.",
}
EMOTION_OPENERS = {
    "NEUTRAL": "I see, $you.",
    "HAPPY": "How wonderful, $you!",
    "SAD": "I am so sorry, $you.",
    "ANGER": "I understand, $you.",
    "SURPRISE": "Wow, $you!",
}
PERSONS = {
    ("CHILD", "MALE"): "boy", ("CHILD", "FEMALE"): "girl",
    ("ADULT", "MALE"): "man", ("ADULT", "FEMALE"): "woman",
    ("OLD", "MALE"): "old man", ("OLD", "FEMALE"): "old woman",
}
PRONOUNS = {"MALE": {"he": "he", "his": "his", "him": "him"},
            "FEMALE": {"he": "she", "his": "her", "him": "her"}}
FEELINGS = {"NEUTRAL": "calm", "HAPPY": "happy", "SAD": "sad", "ANGER": "angry",
            "SURPRISE": "surprised", "FEAR": "scared", "DISGUST": "disgusted"}
SOUNDS = {"OTHER": "", "LAUGH": " who laughs", "CRY": " who cries", "COUGH": " who coughs",
          "SIGH": " who sighs", "SNEEZE": " who sneezes", "SCREAMING": " who screams",
          "THROAT CLEARING": " who clears the throat", "GROAN": " who groans"}
MANNERS = {"CALM": "calmly", "CHEERFUL": "cheerfully", "SOFT": "softly", "BRISK": "quickly"}
THOUGHTS = (
    "I hear {person}{sound}. {Gist}. I will speak {manner}.",
    "I hear {person}{sound}, and {gist}. I will speak {manner}.",
    "I hear {person}{sound}. {Gist}, so I will speak {manner}.",
)


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
    """CALM, CHEERFUL, SOFT or BRISK, as EVENT_STYLES says, or else EMOTION_STYLES."""
    emotion = labels.emotion or "NEUTRAL"
    if labels.event in EVENT_STYLES:
        return EVENT_STYLES[labels.event]
    if emotion not in EMOTION_STYLES:
        raise DataError(f"emotion {emotion!r}: not one of {', '.join(EMOTION_STYLES)}")
    return EMOTION_STYLES[emotion]


def address(age: str, gender: str) -> str:
    """The word by which a speaker is addressed."""
    if age == "OLD":
        return "sir" if gender == "MALE" else "madam"
    return "little one" if age == "CHILD" else "my friend"


def opener(labels: Traits) -> str:
    """The first sentence of a reply."""
    wording = EVENT_OPENERS.get(labels.event) or EMOTION_OPENERS[labels.emotion]
    return Template(wording).substitute(you=address(labels.age, labels.gender))


def natural_thought(labels: Traits, gist: str, variant: int = 0) -> str:
    """The thought in plain words; `gist`: its clause about what was said, `variant` 0 to 2."""
    person = f"a {FEELINGS[labels.emotion]} {PERSONS[labels.age, labels.gender]}"
    said = gist[0].upper() + gist[1:]
    return with_articles(THOUGHTS[variant % len(THOUGHTS)].format(
        person=person, sound=SOUNDS[labels.event], gist=gist, Gist=said,
        manner=MANNERS[style_for(labels)]))


def with_articles(text: str) -> str:
    """`a` before a vowel becomes `an`."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
