"""What is to be made: every label and every pair in turn, topics that do not come again."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from random import Random
from typing import TypeVar

from common_utils.build_dialogues.dialogue import LANGUAGES, PROMPTS, Dialogue, Exchange
from osum_echat.errors import ConfigError
from osum_echat.files import read_lines
from osum_echat.metrics import language_of
from osum_echat.records import Labels
from osum_echat.settings import check_numbers, check_word, read_mapping
from osum_echat.thinking import DEFAULT_LABELS, VALUES

MULTI = "multi"
GENDERS = ("FEMALE", "MALE")
THOUGHTS = ("label", "natural")
MOST_SPARE = 100  # times what is asked for
USUAL = {  # what is planned where the settings do not say; of other fields all values
    "emotion": ("HAPPY", "SAD", "ANGER", "SURPRISE"), "event": ("LAUGH", "COUGH", "CRY", "SIGH"),
}  # fmt: skip
STYLES = {
    "CRY": "SOFT", "LAUGH": "CHEERFUL", "COUGH": "CALM", "SIGH": "CALM", "SAD": "SOFT",
    "HAPPY": "CHEERFUL", "SURPRISE": "BRISK", "FEAR": "SOFT",
}  # fmt: skip
Name = TypeVar("Name")
TOPICS = PROMPTS / "topics-v1.yaml"


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """counts: dialogues by category; spare: share planned beyond them, for what will be dropped.

    pairs: fields whose labels meet in the category multi; styles: an event or emotion of the user
    -> the style of the reply, CALM for those left out; recordings: a folder
    AGE/GENDER/EMOTION/NAME.wav with NAME.txt beside, whose words are questions of that share.
    """

    counts: dict[str, int]
    spare: float = 0.15
    languages: dict[str, float] = field(default_factory=lambda: {"en": 1.0})
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pairs: tuple[tuple[str, ...], ...] = (("emotion", "age"), ("emotion", "gender"),
                                          ("emotion", "event"), ("age", "event"))  # fmt: skip
    explicit: float = 0.25  # share of dialogues whose words may tell the cue
    multi_turn: float = 0.2  # share of dialogues with several turns
    most_turns: int = 3
    thoughts: tuple[str, ...] = THOUGHTS
    styles: dict[str, str] = field(default_factory=lambda: STYLES)
    topics: str = str(TOPICS)
    recordings: str | None = None
    recorded: float = 0.3

    def __post_init__(self) -> None:
        known: dict[str, tuple[Iterable[str], Iterable[str]]] = {
            "counts": (self.counts, (*VALUES, MULTI)), "languages": (self.languages, LANGUAGES),
            "labels": (self.labels, VALUES), "pairs": (chain(*self.pairs), VALUES),
            "thoughts": (self.thoughts, THOUGHTS),
        }
        for name, values in self.labels.items():
            known[f"labels.{name}"] = values, sorted(VALUES.get(name, ()))
        for place, (given, words) in known.items():
            for word in given:
                check_word(f"plan.{place}", word, words)
        for name, shares in (("counts", self.counts), ("languages", self.languages)):
            if not all(0 <= share < math.inf for share in shares.values()):
                raise ConfigError(f"plan.{name}: {shares}, need 0 or more of each")
            if not any(shares.values()):
                raise ConfigError(f"plan.{name}: nothing to plan; give one above 0")
        for name, values in self.labels.items():
            if not values:
                raise ConfigError(f"plan.labels.{name}: empty; leave it out for the usual ones")
        for one in self.pairs:
            if len(set(one)) != 2:
                raise ConfigError(f"plan.pairs: {list(one)}, need two different fields")
        check_numbers(self, "plan", "explicit multi_turn recorded", 0, 1)
        check_numbers(self, "plan", "spare", 0, MOST_SPARE)
        check_numbers(self, "plan", "most_turns", 2)

    def values(self, name: str) -> tuple[str, ...]:
        return self.labels.get(name) or USUAL.get(name) or tuple(sorted(VALUES[name]))


def plan_dialogues(settings: PlanSettings, seed: int) -> list[Dialogue]:
    """All dialogues, without their words. The same settings and seed plan the same."""
    topics = {name: _topics(Path(settings.topics), name, seed) for name in settings.languages}
    planned = []
    for category, count in settings.counts.items():
        rng = Random(f"{seed}:{category}")
        total = math.ceil(count * (1 + settings.spare))
        found = list(cells(category, settings))
        rng.shuffle(found)
        if count and not found:
            raise ConfigError(f"plan.counts.{category}: no label to plan; see plan.labels, pairs")
        languages = spread(settings.languages, total, rng)
        explicit = spread({True: settings.explicit, False: 1 - settings.explicit}, total, rng)
        several = spread({True: settings.multi_turn, False: 1 - settings.multi_turn}, total, rng)
        for number in range(total):
            cues = found[number % len(found)]
            labels = Labels(**DEFAULT_LABELS | {"gender": rng.choice(GENDERS)} | cues)
            turns = rng.randint(2, settings.most_turns) if several[number] else 1
            styles = map(settings.styles.get, (str(labels.event), str(labels.emotion)))
            planned.append(Dialogue(
                f"{category}-{number:06d}", category, languages[number],
                next(topics[languages[number]]), tuple(cues), explicit[number],
                replace(labels, style=next(filter(None, styles), "CALM")), (Exchange(),) * turns,
            ))  # fmt: skip
    return planned


def cells(category: str, settings: PlanSettings) -> Iterator[dict[str, str]]:
    """The cues that a category tests: each label, or each pair of labels."""
    for fields in settings.pairs if category == MULTI else ((category,),):
        for values in product(*map(settings.values, fields)):
            yield dict(zip(fields, values, strict=True))


def spread(shares: Mapping[Name, float], count: int, rng: Random) -> list[Name]:
    """`count` names in shuffled order, each as often as its share says."""
    total, done = sum(shares.values()), 0.0
    drawn: list[Name] = []
    for name, share in shares.items():
        done += share
        drawn += [name] * (round(count * done / total) - len(drawn))
    rng.shuffle(drawn)
    return drawn


def _topics(path: Path, language: str, seed: int) -> Iterator[str]:
    """Every combination of the file's lists once, in shuffled order, then anew."""
    try:
        axes = [list(map(str, one[language])) for one in read_mapping(path)["axes"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no lists of topics ({error!r}); its form: {TOPICS}") from error
    every = list(product(*axes))
    rng = Random(f"{seed}:{language}")
    while every:
        rng.shuffle(every)
        yield from map(" / ".join, every)
    raise ConfigError(f"{path}: no topics for {language}")


def with_recordings(
    planned: Sequence[Dialogue], settings: PlanSettings, seed: int
) -> list[Dialogue]:
    """A share of the questions taken from recordings whose labels fit, each used once.

    Raises ConfigError naming an age, gender and emotion of which there is none.
    """
    if settings.recordings is None:
        return list(planned)
    rng, pools = Random(f"{seed}:recordings"), recorded_questions(Path(settings.recordings))
    drawn: list[Dialogue] = []
    used: Counter[tuple[str, ...]] = Counter()
    for one in planned:
        told = one.labels
        cell = (one.language, str(told.age), str(told.gender), str(told.emotion))
        if len(one.turns) == 1 and "event" not in one.cues and rng.random() < settings.recorded:
            if cell not in pools:
                raise ConfigError(f"plan.recordings {settings.recordings}: no recording with words "
                                  f"for {'/'.join(cell[1:])} ({one.language}), which {one.key} "
                                  "needs; add one, or leave the label out of plan.labels")
            if used[cell] < len(pools[cell]):
                wav, words = pools[cell][used[cell]]
                used[cell] += 1
                one = replace(one, turns=(Exchange(question=words, recording=str(wav)),))
        drawn.append(one)
    return drawn


def recorded_questions(folder: Path) -> dict[tuple[str, ...], list[tuple[Path, str]]]:
    """Recordings and their words by language, age, gender and emotion."""
    short = {whole: language for language, whole in LANGUAGES.items()}
    found: dict[tuple[str, ...], list[tuple[Path, str]]] = {}
    for wav in sorted(folder.glob("*/*/*/*.wav")):
        text = wav.with_suffix(".txt")
        words = " ".join(line.strip() for _, line in read_lines(text)) if text.is_file() else ""
        if words:
            place = (short[language_of(words)], *wav.relative_to(folder).parts[:3])
            found.setdefault(place, []).append((wav.resolve(), words))
    return found
