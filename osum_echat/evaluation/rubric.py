"""What a judge is told and how its answer is read: the versioned rubric."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from osum_echat.errors import ConfigError
from osum_echat.records import Labels

RUBRICS = Path(__file__).parent / "rubrics"
EMPATHY = RUBRICS / "empathy-v1.yaml"
LANGUAGES = ("en", "zh")
HIGHEST = 100.0
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that is scored from 0 to 100. wording: language -> what is asked."""

    name: str
    weight: float
    wording: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Exhibit:
    """What a judge sees of one reply. earlier: (user, assistant) of the turns before."""

    key: str
    category: str
    transcript: str
    labels: Labels
    reply: str
    reply_emotion: str | None
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def language(self) -> str:
        """zh where the words of the user or the reply hold Chinese."""
        return "zh" if _CHINESE.search(self.transcript + self.reply) else "en"

    @property
    def cues(self) -> dict[str, str]:
        """What is known of the user's voice; an event of OTHER is none."""
        known = {name: value for name, value in asdict(self.labels).items() if value}
        known.pop("style", None)
        if known.get("event", "").upper() == "OTHER":
            known.pop("event")
        return known


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's scores. An undecided dimension is None; `overall` is the weighted mean of all else.
    """

    scores: Mapping[str, float | None]
    overall: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rubric:
    """The dimensions and the words around them."""

    version: str
    dimensions: tuple[Dimension, ...]
    words: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.dimensions)

    @classmethod
    def load(cls, path: Path = EMPATHY) -> "Rubric":
        """Read a rubric. Raises ConfigError naming what is missing."""
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
            dimensions = tuple(
                Dimension(one["name"], float(one["weight"]), {own: one[own] for own in LANGUAGES})
                for one in raw["dimensions"]
            )
            words = {name: raw[name] for name in ("anchors", "system", "answer", "fields")}
            return cls(str(raw["version"]), dimensions, words)
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"rubric {path}: {error!r}; its form: {EMPATHY.name}") from error

    def verdict(self, scores: Mapping[str, float | None], reason: str = "") -> Verdict:
        """The scores with their weighted mean."""
        weights = {one.name: one.weight for one in self.dimensions}
        known = [(weights[name], value) for name, value in scores.items() if value is not None]
        overall = sum(weight * value for weight, value in known) / sum(w for w, _ in known)
        return Verdict(scores, overall, reason)

    def messages(self, exhibit: Exhibit) -> list[dict[str, str]]:
        """The chat that asks a judge for its scores."""
        language = exhibit.language
        told = [self.words["system"][language], ""]
        told += [f"- {one.name}: {one.wording[language]}" for one in self.dimensions]
        shape = ", ".join(f'"{name}": 0-100' for name in self.names)
        asked = self.words["answer"][language].replace("DIMENSIONS", shape)
        told += ["", self.words["anchors"][language], "", asked]
        shown = "\n".join(self._shown(exhibit, self.words["fields"][language]))
        return [{"role": "system", "content": "\n".join(told)}, {"role": "user", "content": shown}]

    def _shown(self, exhibit: Exhibit, field: Mapping[str, str]) -> Iterator[str]:
        cues = ", ".join(f"{name} {value}" for name, value in exhibit.cues.items())
        yield f"{field['category']}: {exhibit.category}"
        if exhibit.earlier:
            yield f"<{field['earlier']}>"
            for user, assistant in exhibit.earlier:
                yield f"{field['user']}: {user}"
                yield f"{field['assistant']}: {assistant}"
            yield f"</{field['earlier']}>"
        for name, value in (
            ("transcript", exhibit.transcript), ("labels", cues or field["none"]),
            ("reply", exhibit.reply), ("reply_emotion", exhibit.reply_emotion or field["none"]),
        ):  # fmt: skip
            yield f"<{field[name]}>{value}</{field[name]}>"

    def read(self, answer: str) -> Verdict | None:
        """The verdict in a judge's answer; None where it holds no complete one.

        Takes the first JSON object with usable `scores`: each dimension a number from 0 to 100, or
        null; at least one a number. Words and code fences around it do no harm.
        """
        for found in _objects(answer):
            scores = found.get("scores")
            if not isinstance(scores, dict) or set(self.names) - set(scores):
                continue
            values = [scores[name] for name in self.names]
            if all(map(_is_score, values)) and any(value is not None for value in values):
                kept = {name: None if value is None else float(value)
                        for name, value in zip(self.names, values, strict=True)}  # fmt: skip
                return self.verdict(kept, str(found.get("reason", "")))
        return None


def _is_score(value: object) -> bool:
    if value is None:
        return True
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= float(value) <= HIGHEST      # type: ignore[arg-type]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that begins somewhere in the text."""
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            found, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            yield found
        place = text.find("{", place + 1)
