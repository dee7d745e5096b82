"""What is to be made: every label and every pair in turn, topics that do not come again."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from random import Random
from typing import TypeVar

from common_utils.build_dialogues.dialogue import LANGUAGES, PROMPTS, Dialogue, Exchange
from osum_echat.errors import ConfigError
from osum_echat.files import read_lines
from osum_echat.metrics import language_of
from osum_echat.records import Labels
from osum_echat.settings import check_numbers, read_mapping
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
        for name, count in self.counts.items():
            _known("plan.counts", name, (*VALUES, MULTI))
            if count < 0:
                raise ConfigError(f"plan.counts.{name}: {count}, need 0 or more")
        for language, share in self.languages.items():
            _known("plan.languages", language, LANGUAGES)
            if not 0 <= share < math.inf:
                raise ConfigError(f"plan.languages.{language}: {share}, need 0 or more")
        for name in ("counts", "languages"):
            if not sum(getattr(self, name).values()):
                raise ConfigError(f"plan.{name}: nothing to plan; give one above 0")
        for name, values in self.labels.items():
            _known("plan.labels", name, VALUES)
            if not values:
                raise ConfigError(f"plan.labels.{name}: empty; leave it out for the usual ones")
            for value in values:
                _known(f"plan.labels.{name}", value, sorted(VALUES[name]))
        for one in self.pairs:
            if len(set(one)) != 2:
                raise ConfigError(f"plan.pairs: {list(one)}, need two different fields")
            for name in one:
                _known("plan.pairs", name, VALUES)
        for thought in self.thoughts:
            _known("plan.thoughts", thought, THOUGHTS)
        check_numbers(self, "plan", "explicit multi_turn recorded", 0, 1)
        check_numbers(self, "plan", "spare", 0, MOST_SPARE)
        check_numbers(self, "plan", "most_turns", 2)

    def values(self, name: str) -> tuple[str, ...]:
        return self.labels.get(name) or USUAL.get(name) or tuple(sorted(VALUES[name]))


def _known(where: str, name: str, known: Sequence[str] | Mapping[str, object]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"{where}: {name!r} does not exist; {hint}")


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
            planned.append(Dialogue(
                f"{category}-{number:06d}", category, languages[number],
                next(topics[languages[number]]), tuple(cues), explicit[number],
                replace(labels, style=_style(labels, settings.styles)), (Exchange(),) * turns,
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


def _style(labels: Labels, styles: Mapping[str, str]) -> str:
    return styles.get(str(labels.event)) or styles.get(str(labels.emotion)) or "CALM"


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
