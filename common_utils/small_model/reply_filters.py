"""Whether a reply fits: how much it copies, whether it ends, which labels it names."""

import re
from functools import lru_cache

from common_utils.small_model.topics import bare, words, words_of
from osum_echat.records import Labels

WORDS = (4, 24)  # of a reply, from and to
_FEELING = (
    r"\b(?:you sound|you are|you're|your|how|hear how|hear that you are|that you are) "
    r"(?:so |very |too |really |still )?({})\b"
)
_SOUND = r"\b(?:your|that|you|you are|such a|what a|hear you|lovely|deep|that) (?:so )?({})\b"


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
