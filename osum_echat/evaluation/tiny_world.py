"""The tiny world's test split: is the reply one of the right ones, task by task.

What is right is told by the world's own script in common_utils, which lies beside the package in
a checkout. benchmarks/tiny_world.py measures more of the same model, such as its speech.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import predictions
from osum_echat.evaluation.asking_together import ask
from osum_echat.evaluation.echat_items import CUES, MULTI_TURN, WORLD_FILE, EChatItem, objects, read
from osum_echat.evaluation.predictions import Prediction
from osum_echat.evaluation.results import Bars, Block, Cell, Measure, Outcome, Table, Words, share
from osum_echat.evaluation.runner import Model
from osum_echat.evaluation.start import limited
from osum_echat.inference.reply import Reply
from osum_echat.records import Turn, Utterance

WAYS = {                                # name -> task, kind of thought
    "s2s_think, label": ("s2s_think", "label"),
    "s2s_think, natural": ("s2s_think", "natural"),
    "s2s": ("s2s", None),
    "s2t": ("s2t", None),
    "t2t": ("t2t", None),
}
WITH_HISTORY = ("s2s",)


@dataclass(frozen=True, slots=True)
class Asked:
    """One exchange in one way."""

    item: EChatItem
    way: str

    @property
    def key(self) -> str:
        return f"{self.item.key}/{self.way}"


@dataclass(frozen=True)
class TinyWorld:
    """The suite. raw: the exchanges as they stand in the file, by key."""

    model: Model
    asked: tuple[Asked, ...]
    raw: Mapping[str, Mapping[str, Any]]
    seed: int
    greedy: bool
    fixed: dict[str, Any]
    shown: dict[str, Any]
    name: str = "tiny_world"
    title: str = "The tiny world's test split"

    def items(self) -> Sequence[Asked]:
        return self.asked

    def kind(self, item: Asked) -> str:
        """Those asked in one way together."""
        return item.way

    def predict(self, items: Sequence[Asked], out: Path) -> list[Prediction | OsumError]:
        """The texts of replies in one way."""
        way = items[0].way
        task, thinking = WAYS[way]

        def source(asked: Asked) -> Utterance | str:
            one = asked.item
            return one.transcript if task == "t2t" else Utterance(
                one.key, task, Turn(audio=one.wav), history=one.earlier)  # fmt: skip

        def kept(asked: Asked, reply: Reply) -> Prediction:
            told = {"item": asked.item.key, "way": way, "category": asked.item.category}
            return told | predictions.of_reply(reply, out, asked.key)

        return ask(self.model.assistant, items, self.seed, source, kept, task=task,
                   thinking=thinking, greedy=self.greedy, speak=False)  # fmt: skip

    def score(self, found: Sequence[Prediction], out: Path) -> Outcome:
        """Right replies by way, and by what the exchange tests."""
        made = predictions.made(found)
        right = {one["key"]: self._is_right(one) for one in made}
        ways = list(dict.fromkeys(one["way"] for one in made))
        kinds = list(dict.fromkeys(one["category"] for one in made))
        cells = {(way, kind): share([right[one["key"]] for one in made if one["way"] == way
                                     and kind in (one["category"], "all")])
                 for way in ways for kind in (*kinds, "all")}  # fmt: skip
        measures = {f"{way}/{kind}": cell for (way, kind), cell in cells.items() if cell.count}
        labels = {f"{way}/{cue} of the thought": self._cue(made, way, cue)
                  for way in ways if "label" in way for cue in CUES}  # fmt: skip
        rows: list[list[Cell]] = [[way, *(cells[way, kind] for kind in (*kinds, "all"))]
                                  for way in ways]  # fmt: skip
        blocks: list[Block] = [
            Words("A reply is right when it is word for word one of those that the world's script "
                  "gives for the words and the voice; in percent, with 95 % intervals."),
            Table("Right replies", ("task", *kinds, "all"), rows),
            Bars("Right replies", kinds,
                 {way: [cells[way, kind] for kind in kinds] for way in ways}, "%"),
            Table("Labels of the thought that are right", ("label", "%"), list(labels.items())),
            Table("Replies that are not right", ("exchange", "asked", "reply", "one right reply"),
                  self._wrong(made, right)),
        ]  # fmt: skip
        return Outcome(measures | labels, blocks)

    def _answers(self, one: Prediction) -> set[str]:
        world, raw = _world(), self.raw[one["item"]]
        answers: set[str] = (world.right_text_replies(raw) if one["way"] == "t2t"
                             else world.right_replies(raw))  # fmt: skip
        return answers

    def _is_right(self, one: Prediction) -> bool:
        return _script().normalise(one["text"]) in self._answers(one)

    def _cue(self, made: Sequence[Prediction], way: str, cue: str) -> Measure:
        return share([one["labels"][cue] == self.raw[one["item"]]["labels"][cue]
                      for one in made if one["way"] == way])  # fmt: skip

    def _wrong(self, made: Sequence[Prediction], right: Mapping[str, bool]) -> list[list[Cell]]:
        wrong = [one for one in made if not right[one["key"]]][:20]
        return [[one["key"], self.raw[one["item"]]["user_text"], one["text"],
                 sorted(self._answers(one))[0]] for one in wrong]  # fmt: skip


def _script() -> Any:
    """The module of the world's script. Raises InputError outside of a checkout."""
    try:
        from common_utils.tiny_world import world
    except ImportError as error:
        raise InputError(
            f"tiny_world: {error}; the world's script lies in common_utils of a checkout: run "
            "from its root"
        ) from error
    return world


@cache
def _world() -> Any:
    """The world, read once."""
    return _script().load_world()


def build(arguments: Namespace, model: Model) -> TinyWorld:
    """The suite that the options ask for. Raises InputError for data of another kind."""
    place = arguments.data / WORLD_FILE
    if not place.is_file():
        raise InputError(f"--data {arguments.data}: no {WORLD_FILE}; make a split with "
                         "python -m common_utils.tiny_world.make --help")  # fmt: skip
    raw = {one["key"]: one for _, one in objects(place)}
    items = limited(read(arguments.data), arguments.limit, lambda one: one.category)
    asked = tuple(Asked(item, way) for item in items for way in WAYS
                  if item.category != MULTI_TURN or way in WITH_HISTORY)  # fmt: skip
    return TinyWorld(model, asked, raw, arguments.seed, arguments.greedy, {}, {})
