"""How a voice is answered: openings, styles and thoughts by what it tells; whether a reply fits.

The words stand in words/*.yaml; styles, persons and pronouns are the tiny world's.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from random import Random
from string import Template

from common_utils.small_model.topics import bare, parts, sentence, words, words_of
from common_utils.tiny_world import world as tiny
from common_utils.tiny_world.world import style_for
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
WORDS = (4, 24)  # of a reply, from and to
_FEELING = (
    r"\b(?:you sound|you are|you're|your|how|hear how|hear that you are|that you are) "
    r"(?:so |very |too |really |still )?({})\b"
)
_SOUND = r"\b(?:your|that|you|you are|such a|what a|hear you|lovely|deep|that) (?:so )?({})\b"


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


def content_words(text: str) -> set[str]:
    """The words that say what it is about."""
    return {word for word in words_of(text) if len(word) > 2 and word not in _common()}


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    return frozenset(words("lexicon")["common"].split())


def copied_share(question: str, reply: str) -> float:
    """The share of the question's content words that the reply repeats; 0 without any."""
    asked = content_words(question)
    return len(asked & content_words(reply)) / len(asked) if asked else 0.0


def ends_properly(reply: str) -> bool:
    """Whether it ends as a sentence does."""
    return reply.strip()[-1:] in (".", "!", "?")


def repeats(reply: str, size: int = 3) -> bool:
    """Whether some words stand in it twice, in a row of `size`."""
    said = words_of(reply)
    runs = [tuple(said[at : at + size]) for at in range(len(said) - size + 1)]
    return len(set(runs)) < len(runs)


def wrong_labels(reply: str, labels: Labels) -> list[str]:
    """The words of a reply that name a label the voice does not have."""
    text, own = bare(reply), {labels.age, labels.gender, labels.emotion}
    known = words("lexicon")
    wrong = [
        word for word, fitting in known["labels"].items()
        if re.search(rf"(?:, |^|\b(?:my|dear|a|an) ){word}(?=[.,!?]|$)", reply.lower())
        and not any(set(each.split()) <= own for each in fitting.split("|"))
    ]  # fmt: skip
    feelings, sounds = known["feelings"], known["sounds"]
    wrong += [word for word in re.findall(_FEELING.format("|".join(feelings)), text)
              if labels.emotion not in feelings[word].split()]  # fmt: skip
    return wrong + [word for word in re.findall(_SOUND.format("|".join(sounds)), text)
                    if sounds[word] != labels.event]  # fmt: skip


def is_fit(question: str, reply: str, labels: Labels) -> bool:
    """Length, end, copying, repeats and labels together."""
    return (
        WORDS[0] <= len(reply.split()) <= WORDS[1]
        and ends_properly(reply)
        and copied_share(question, reply) <= 0.5
        and not repeats(reply)
        and not wrong_labels(reply, labels)
    )
