"""The words: question, reply and thoughts of each planned dialogue, by a chat model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from string import Template
from typing import Any

from common_utils.build_dialogues.dialogue import (
    LANGUAGES,
    PROMPTS,
    Calls,
    Dialogue,
    EndpointSettings,
    Exchange,
    dialogues_of,
    made,
)
from common_utils.jobs import Made, Piece
from osum_echat.data.sources import Dropped
from osum_echat.errors import ConfigError
from osum_echat.evaluation.endpoint import objects_in
from osum_echat.settings import read_mapping
from osum_echat.thinking import THINK_END, THINK_START, clean, label_thought, template_named

AND = {"en": " and ", "zh": "和"}
WORDS = str(PROMPTS / "write-v1.yaml")


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """Who writes, asked in which words. prompts: a file of the form of prompts/write-v1.yaml."""

    endpoint: EndpointSettings
    prompts: str = WORDS


@dataclass(frozen=True, slots=True)
class Writing:
    """The step: a portion of the plan to written dialogues. thoughts: label, natural or both."""

    settings: WriteSettings
    thoughts: tuple[str, ...]
    calls: Path

    def __call__(self, portion: Piece) -> Made:
        dialogues = dialogues_of(portion)
        with Calls(self.settings.endpoint, self.calls, portion) as calls:
            return made(calls.each(partial(self._write, calls), dialogues))

    def _write(self, calls: Calls, dialogue: Dialogue) -> Dialogue | Dropped:
        asked = messages(dialogue, read_prompts(self.settings.prompts), self.is_natural)
        rounds = self.settings.endpoint.rounds
        for number in range(rounds):
            turns = read_turns(calls.chat(asked, number), dialogue, self.is_natural)
            if turns is not None and "label" in self.thoughts:
                template = template_named(LANGUAGES[dialogue.language])
                told = [label_thought(template, str(turn.question), dialogue.labels_at(place))
                        for place, turn in enumerate(turns)]  # fmt: skip
                turns = tuple(
                    replace(turn, label_thought=one.removeprefix(THINK_START)
                            .removesuffix(THINK_END))
                    for turn, one in zip(turns, told, strict=True)
                )  # fmt: skip
            if turns is not None:
                return replace(dialogue, turns=turns)
        return Dropped(f"no readable answer in {rounds} rounds", dialogue.key)

    @property
    def is_natural(self) -> bool:
        return "natural" in self.thoughts


@lru_cache
def read_prompts(path: str) -> Mapping[str, Any]:
    """The words to ask with. Raises ConfigError naming what is missing."""
    raw = read_mapping(Path(path))
    for name in ("version", "labels", "styles", "system", "ask", "turns", "given", "cue", "thought",
                 "form"):  # fmt: skip
        if name not in raw:
            raise ConfigError(f"{path}: no {name}; its form: {WORDS}")
    return raw


def messages(
    dialogue: Dialogue, words: Mapping[str, Any], is_natural: bool
) -> list[dict[str, str]]:
    """The chat that asks for a dialogue."""
    language, count = dialogue.language, len(dialogue.turns)
    heard = {name: told[label][language] for name, told in words["labels"].items()
             if (label := getattr(dialogue.labels, name)) in told}  # fmt: skip
    noticed = AND[language].join(heard[name] for name in dialogue.cues if name in heard)
    noticed = noticed or AND[language].join(dialogue.cues)
    given, form = dialogue.turns[0].question, words["form"]["natural" if is_natural else "none"]
    style = dialogue.labels.style or "CALM"
    asked = Template(words["ask"][language]).substitute(
        turns=Template(words["turns"][language]["one" if count == 1 else "several"])
        .substitute(count=count),
        topic=dialogue.topic, voice=("，" if language == "zh" else ", ").join(heard.values()),
        given=Template(words["given"][language]["words" if given else "none"])
        .substitute(words=given),
        cue=Template(words["cue"][language]["explicit" if dialogue.explicit else "implicit"])
        .substitute(noticed=noticed),
        noticed=noticed, style=words["styles"].get(style, {}).get(language, style),
        thought=words["thought"][language]["natural" if is_natural else "none"],
        form=", ".join([form] * count),
    )  # fmt: skip
    return [{"role": "system", "content": words["system"][language]},
            {"role": "user", "content": asked}]  # fmt: skip


def read_turns(answer: str, dialogue: Dialogue, is_natural: bool) -> tuple[Exchange, ...] | None:
    """The turns in an answer; None where it does not hold as many whole ones as planned."""
    names = ("question", "thought", "reply") if is_natural else ("question", "reply")
    for found in objects_in(answer):
        turns = found.get("turns")
        if not isinstance(turns, list) or len(turns) != len(dialogue.turns):
            continue
        if all(isinstance(one, dict) and all(isinstance(one.get(name), str) and one[name].strip()
                                             for name in names) for one in turns):  # fmt: skip
            return tuple(
                replace(planned, **{name: clean(one[name]) for name in names}
                        | ({"question": planned.question} if planned.recording else {}))
                for planned, one in zip(dialogue.turns, turns, strict=True)
            )  # fmt: skip
    return None
