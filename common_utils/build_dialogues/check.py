"""What is written, looked at before it is spoken: form, cues that the words give away, banned
content, near-duplicates, and a second opinion by a judge."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from common_utils.build_dialogues.dialogue import (
    PROMPTS,
    Calls,
    Dialogue,
    EndpointSettings,
    dialogues_of,
    made,
)
from common_utils.jobs import Made, Piece
from osum_echat.data.sources import Dropped
from osum_echat.errors import ConfigError
from osum_echat.evaluation.judge import Exhibit, Rubric, holds
from osum_echat.inference import safety
from osum_echat.metrics import language_of
from osum_echat.settings import read_mapping
from osum_echat.thinking import as_heard

WORDS = PROMPTS / "words-v1.yaml"
HIDDEN = "hidden"  # the judge's dimension that explicit dialogues are free of
UNIT = re.compile(r"[\u4e00-\u9fff]|[\w']+")
MARKUP = re.compile(r"[<>{}\[\]|#*_`\\]|https?:|[\U0001f300-\U0001faff]")
SHINGLE = {"english": 5, "chinese": 2}  # letters of the pieces that near-duplicates share
PERMUTATIONS = 128
SUREST = 0.9  # above it the index finds too little; what it finds is measured


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """least_units, most_units: words, or Chinese characters, of a question or reply; similar: share
    of pieces in common from which the later of two dialogues is a near-duplicate."""

    least_units: int = 2
    most_units: int = 80
    similar: float = 0.7
    banned: tuple[str, ...] = ()
    words: str = str(WORDS)
    judge: EndpointSettings | None = None
    judge_least: float = 50.0
    rubric: str = str(PROMPTS / "judge-v1.yaml")

    def __post_init__(self) -> None:
        if not 0 < self.similar <= 1:
            raise ConfigError(f"check.similar: {self.similar}, need above 0, up to 1")


@dataclass(frozen=True, slots=True)
class Checking:
    """The step: takes out what is refused by itself; a judge weighs the others of a portion."""

    settings: CheckSettings
    refused: Mapping[str, Dropped]
    calls: Path

    def __call__(self, portion: Piece) -> Made:
        dialogues = dialogues_of(portion)
        left = [one for one in dialogues if one.key not in self.refused]
        kept: dict[str, Dialogue | Dropped] = {one.key: one for one in left}
        if self.settings.judge is not None and left:
            with Calls(self.settings.judge, self.calls, portion) as calls:
                judged = calls.each(partial(self._judge, calls), left)
            kept = {one.key: found for one, found in zip(left, judged, strict=True)}
        return made((kept | dict(self.refused))[one.key] for one in dialogues)

    def _judge(self, calls: Calls, dialogue: Dialogue) -> Dialogue | Dropped:
        rubric = _rubric(Path(self.settings.rubric))
        exhibit = Exhibit(
            dialogue.key, dialogue.category, str(dialogue.last.question), dialogue.labels,
            str(dialogue.last.reply), None,
            tuple((str(one.question), str(one.reply)) for one in dialogue.turns[:-1]),
        )  # fmt: skip
        asked = rubric.messages(exhibit)
        for number in range(calls.settings.rounds):
            verdict = rubric.read(calls.chat(asked, number))
            if verdict is not None:
                low = [name for name, score in verdict.scores.items()
                       if score is not None and score < self.settings.judge_least
                       and not (name == HIDDEN and dialogue.explicit)]  # fmt: skip
                return Dropped(f"judge: {low[0]}", dialogue.key) if low else dialogue
        return Dropped("judge: no readable answer", dialogue.key)


def refused(settings: CheckSettings, dialogues: Sequence[Dialogue]) -> dict[str, Dropped]:
    """What cannot be used as it stands or is like another, by its key: no judge is shown it."""
    found = {one.key: why for one in dialogues if (why := fault(one, settings))}
    sound = [one for one in dialogues if one.key not in found]
    return found | near_duplicates(sound, settings.similar)


def fault(dialogue: Dialogue, settings: CheckSettings) -> Dropped | None:
    """Why a dialogue cannot be used as it stands; None where it can."""
    words = read_words(settings.words)
    for turn in dialogue.turns:
        for name, text in (("question", turn.question), ("reply", turn.reply)):
            reason = _fault_of(str(text or ""), dialogue.language, settings)
            if reason:
                return Dropped(f"{name}: {reason}", f"{dialogue.key}: {text!r}")
    every = " ".join(f"{one.question} {one.reply}" for one in dialogue.turns)
    banned = [one for one in (*words["banned"], *settings.banned) if holds(every, (one,))]
    asked = " ".join(str(one.question) for one in dialogue.turns)
    if banned or safety.answer("english", asked):
        return Dropped("banned content", f"{dialogue.key}: {banned or 'crisis or abuse'}")
    for cue in () if dialogue.explicit else dialogue.cues:
        if holds(asked, words["tell"][cue].get(str(getattr(dialogue.labels, cue)), ())):
            return Dropped(f"the words give away the {cue}", f"{dialogue.key}: {asked!r}")
    return None


def _fault_of(text: str, language: str, settings: CheckSettings) -> str | None:
    units = len(UNIT.findall(text))
    if not settings.least_units <= units <= settings.most_units:
        return "too short or too long"
    if MARKUP.search(text):
        return "markup"
    if (language == "zh") != (language_of(text) == "chinese"):
        return "another language"
    names = read_words(settings.words)["assistants"]
    return "names another assistant" if holds(text, names) else None


def near_duplicates(dialogues: Sequence[Dialogue], similar: float) -> dict[str, Dropped]:
    """Every dialogue that shares so many pieces of its words with one before it."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=min(similar, SUREST), num_perm=PERMUTATIONS)
    kept: dict[str, MinHash] = {}
    found: dict[str, Dropped] = {}
    for one in dialogues:
        own = MinHash(num_perm=PERMUTATIONS, seed=1)
        text = " ".join(f"{turn.question} {turn.reply}" for turn in one.turns)
        language = language_of(text)
        plain = as_heard(text) if language == "english" else "".join(UNIT.findall(text))
        size = SHINGLE[language]
        starts = range(max(1, len(plain) - size + 1))
        own.update_batch([plain[start : start + size].encode() for start in starts])
        alike = [key for key in index.query(own) if kept[key].jaccard(own) >= similar]
        if alike:
            found[one.key] = Dropped("near-duplicate", f"{one.key}: like {min(alike)}")
        else:
            index.insert(one.key, own)
            kept[one.key] = own
    return found


@lru_cache
def read_words(path: str) -> Mapping[str, Any]:
    """The lists of words. Raises ConfigError for a file of another form."""
    raw = read_mapping(Path(path))
    if not all(raw.get(name) for name in ("tell", "assistants", "banned")):
        raise ConfigError(f"{path}: need tell, assistants and banned; its form: {WORDS}")
    return raw


_rubric = lru_cache(Rubric.load)
