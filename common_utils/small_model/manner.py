"""How a voice is answered: openings, speaking styles and thoughts by what the voice tells.

The words stand in words/*.yaml; styles, persons and pronouns are the tiny world's.
"""

from collections.abc import Mapping
from functools import lru_cache
from random import Random
from string import Template

from common_utils.small_model.topics import parts, sentence, words
from common_utils.tiny_world import manner as tiny
from common_utils.tiny_world.manner import style_for
from osum_echat.records import Labels

AGES, GENDERS = tiny.AGES, tiny.GENDERS
EMOTIONS = (*tiny.EMOTIONS, "FEAR", "DISGUST")
NO_EVENT = "OTHER"
SELVES = {"MALE": "himself", "FEMALE": "herself"}
THOUGHTS = (
    "I hear $person$sound. $Gist. $Act and speak $manner.",
    "I hear $person$sound, and $gist. $Act and speak $manner.",
    "I hear $person$sound. $Gist, so $act and speak $manner.",
)


@lru_cache(maxsize=1)
def openings() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """`emotion`, `event`, `address` and `acts`, each by label."""
    return {
        kind: {label: parts(text) for label, text in rows.items()}
        for kind, rows in words("openings").items()
    }


def opening(labels: Labels, rng: Random) -> str:
    """A first sentence that follows the labels, "" where none is wanted."""
    event, emotion = labels.event or NO_EVENT, labels.emotion or "NEUTRAL"
    if event != NO_EVENT and rng.random() < 0.6:
        first = rng.choice(openings()["event"][event])
    elif rng.random() < (0.2 if emotion == "NEUTRAL" else 0.9):
        first = rng.choice(openings()["emotion"][emotion])
    else:
        return ""
    names = openings()["address"].get(labels.age or "")
    if names and first[-1] in ".!" and rng.random() < 0.25:
        name = rng.choice(names).rstrip(".")
        first = f"{first[:-1]}, {name[0].lower()}{name[1:]}{first[-1]}"
    return first


def natural_thought(labels: Labels, gist: str, rng: Random, act: str | None = None) -> str:
    """A thought in plain words. gist: what $he says; act: what is done, None: by the emotion."""
    emotion = labels.emotion or "NEUTRAL"
    gender = labels.gender or "MALE"
    pronouns = {**tiny.PRONOUNS[gender], "himself": SELVES[gender]}
    act = act or rng.choice(openings()["acts"][emotion]).rstrip(".")
    person = f"a {tiny.FEELINGS.get(emotion, 'calm')} {tiny.PERSONS[labels.age or 'ADULT', gender]}"
    gist, act = (Template(text).safe_substitute(pronouns) for text in (gist, act))
    return Template(rng.choice(THOUGHTS)).substitute(
        person=tiny.with_articles(person), sound=tiny.SOUNDS[labels.event or NO_EVENT],
        gist=gist, Gist=sentence(gist).rstrip("."), act=act, Act=act,
        manner=tiny.MANNERS[labels.style or style_for(labels)],
    )  # fmt: skip
