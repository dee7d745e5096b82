"""Whether a reply fits: how much it copies, whether it ends, which labels it names."""

import re
from collections.abc import Iterable

from osum_echat.records import Labels

WORDS = (4, 24)  # of a reply, from and to
_WORD = re.compile(r"[a-z']+")
# Words that are in every talk: copying them says nothing.
COMMON = frozenset(
    "a about after again all also always am an and any anything are as at back be because been "
    "before being but by can can't cannot come could day did didn't do does doesn't doing don't "
    "done down even ever every feel for from get give go going good got had has have haven't he "
    "her here hers him his how i i'd i'll i'm i've if in into is isn't it it's its just keep know "
    "last let like little long look lot made make many may maybe me mean might more most much must "
    "my need never no not nothing now of off on one only or other our out over own people please "
    "put really right said say see she should so some something still sure take talk tell than "
    "that that's the their them then there these they thing things think this those time to today "
    "too two until up us use very want was wasn't way we well went were what what's when where "
    "which while who why will with won't work would yes yet you you're your yours".split()
)
LABEL_WORDS = {  # words that name a label of the speaker, and the labels they go with
    "boy": ("CHILD MALE",),
    "girl": ("CHILD FEMALE",),
    "sir": ("OLD MALE", "ADULT MALE"),
    "madam": ("OLD FEMALE", "ADULT FEMALE"),
    "kiddo": ("CHILD",),
    "sweetie": ("CHILD",),
    "little one": ("CHILD",),
    "young man": ("CHILD MALE", "ADULT MALE"),
    "old man": ("OLD MALE",),
    "old woman": ("OLD FEMALE",),
    "young lady": ("CHILD FEMALE", "ADULT FEMALE"),
}
FEELING_WORDS = {  # after "you sound", "you are", "your": the emotion that is named
    "happy": "HAPPY",
    "glad": "HAPPY",
    "joy": "HAPPY",
    "cheerful": "HAPPY",
    "sad": "SAD",
    "sadness": "SAD",
    "unhappy": "SAD",
    "angry": "ANGER",
    "anger": "ANGER",
    "mad": "ANGER",
    "furious": "ANGER",
    "upset": "ANGER SAD",
    "scared": "FEAR",
    "afraid": "FEAR",
    "fear": "FEAR",
    "surprised": "SURPRISE",
    "disgusted": "DISGUST",
}
SOUND_WORDS = {
    "laugh": "LAUGH",
    "laughing": "LAUGH",
    "cry": "CRY",
    "crying": "CRY",
    "cough": "COUGH",
    "sigh": "SIGH",
    "sneeze": "SNEEZE",
    "scream": "SCREAMING",
    "groan": "GROAN",
}
_FEELING = re.compile(
    r"\b(?:you sound|you are|you're|your|how|hear how|hear that you are|that you are) "
    r"(?:so |very |too |really |still )?(" + "|".join(FEELING_WORDS) + r")\b"
)
_SOUND = re.compile(
    r"\b(?:your|that|you|you are|such a|what a|hear you|lovely|deep|that) "
    r"(?:so )?(" + "|".join(SOUND_WORDS) + r")\b"
)


def words_of(text: str) -> list[str]:
    """Its words in lower case."""
    return _WORD.findall(text.lower().replace("’", "'"))


def content_words(text: str) -> set[str]:
    """The words that say what it is about."""
    return {word for word in words_of(text) if len(word) > 2 and word not in COMMON}


def copied_share(question: str, reply: str) -> float:
    """The share of the question's content words that the reply repeats; 0 without any."""
    asked = content_words(question)
    return len(asked & content_words(reply)) / len(asked) if asked else 0.0


def ends_properly(reply: str) -> bool:
    """Whether it ends as a sentence does."""
    return reply.strip()[-1:] in (".", "!", "?")


def repeats(reply: str, size: int = 3) -> bool:
    """Whether some words stand in it twice, in a row of `size`."""
    words = words_of(reply)
    runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return len(set(runs)) < len(runs)


def wrong_labels(reply: str, labels: Labels) -> list[str]:
    """The words of a reply that name a label the voice does not have."""
    text, own = " ".join(words_of(reply)), {labels.age, labels.gender, labels.emotion}
    wrong = [
        word
        for word, fitting in LABEL_WORDS.items()
        if re.search(rf"(?:, |^|\b(?:my|dear|a|an) ){word}(?=[.,!?]|$)", reply.lower())
        and not any(set(each.split()) <= own for each in fitting)
    ]
    wrong += [
        word for word in _FEELING.findall(text) if labels.emotion not in FEELING_WORDS[word].split()
    ]
    return wrong + [word for word in _SOUND.findall(text) if SOUND_WORDS[word] != labels.event]


def is_fit(question: str, reply: str, labels: Labels) -> bool:
    """Length, end, copying, repeats and labels together."""
    return (
        WORDS[0] <= len(reply.split()) <= WORDS[1]
        and ends_properly(reply)
        and copied_share(question, reply) <= 0.5
        and not repeats(reply)
        and not wrong_labels(reply, labels)
    )


def most_common_share(replies: Iterable[str]) -> float:
    """How large a share the most frequent reply has."""
    every = list(replies)
    return max((every.count(one) for one in set(every)), default=0) / max(1, len(every))
