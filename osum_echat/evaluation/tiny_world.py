"""The tiny world's test split: is the reply one of the right ones, task by task.

What is right is told by the world's own script in common_utils, which lies beside the package in
a checkout. benchmarks/tiny_world.py measures the speech of the same model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import echat_eval, runner
from osum_echat.evaluation.echat_eval import CUES, MULTI_TURN, WORLD_FILE, Query
from osum_echat.evaluation.report import Measure, Outcome, Table, share
from osum_echat.evaluation.runner import Prediction, Run, Suite, limited
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
SHOWN = 20                              # replies that are not right
Exchanges = Mapping[str, Mapping[str, Any]]     # as they stand in the file, by key


def build(run: Run) -> Suite[Query]:
    """The suite that the options ask for. Raises InputError for data of another kind."""
    options = run.options
    place = options.data / WORLD_FILE
    if not place.is_file():
        raise InputError(f"--data {options.data}: no {WORLD_FILE}; make a split with "
                         "python -m common_utils.tiny_world.make --help")  # fmt: skip
    raw = {str(one.get("key")): one for one in runner.read_objects(place, lambda one, _: one)[0]}
    every, lost = echat_eval.read(options.data)
    asked = [Query(item, way) for item in limited(every, options.limit, lambda one: one.category)
             for way in WAYS if item.category != MULTI_TURN or way in WITH_HISTORY]  # fmt: skip
    return Suite(
        "The tiny world's test split", asked, partial(ask, run), partial(score, raw),
        kind=lambda one: one.way, lost=lost,
        sounds=lambda one: [one.item.transcript] if one.way == "t2t" else one.sounds(),
    )  # fmt: skip


def ask(run: Run, asked: Sequence[Query], out: Path) -> list[Prediction | OsumError]:
    """The texts of replies in one way."""
    way = asked[0].way
    task, thinking = WAYS[way]

    def source(one: Query) -> Utterance | str:
        item = one.item
        return item.transcript if task == "t2t" else Utterance(
            item.key, task, Turn(audio=item.wav), history=item.earlier)  # fmt: skip

    def kept(one: Query, reply: Reply) -> Prediction:
        told = {"item": one.item.key, "way": way, "category": one.item.category}
        return told | runner.of_reply(reply, out, one.key)

    return run.ask(asked, source, kept, task=task, thinking=thinking, speak=False)


def score(raw: Exchanges, found: Sequence[Prediction], out: Path) -> Outcome:
    """Right replies by way, and by what the exchange tests."""
    made, (normalise, world) = runner.made(found), _script()
    answers = {one["key"]: world.right_text_replies(raw[one["item"]]) if one["way"] == "t2t"
               else world.right_replies(raw[one["item"]]) for one in made}  # fmt: skip
    right = {one["key"]: normalise(one["text"]) in answers[one["key"]] for one in made}
    ways = list(dict.fromkeys(one["way"] for one in made))
    kinds = list(dict.fromkeys(one["category"] for one in made))
    cells = {(way, kind): share([right[one["key"]] for one in made if one["way"] == way
                                 and kind in (one["category"], "all")])
             for way in ways for kind in (*kinds, "all")}  # fmt: skip
    labels = {
        f"{way}/{cue} of the thought": share(
            [one["labels"][cue] == raw[one["item"]]["labels"][cue]
             for one in made if one["way"] == way])
        for way in ways if "label" in way for cue in CUES
    }  # fmt: skip
    measures: dict[str, Measure] = {
        f"{way}/{kind}": cell for (way, kind), cell in cells.items() if cell.count} | labels
    wrong = [(one["key"], raw[one["item"]]["user_text"], one["text"], min(answers[one["key"]]))
             for one in [one for one in made if not right[one["key"]]][:SHOWN]]  # fmt: skip
    return Outcome(measures, [
        "A reply is right when it is word for word one of those that the world's script gives for "
        "the words and the voice; in percent, with 95 % intervals.",
        Table("Right replies", ("task", *kinds, "all"),
              [[way, *(cells[way, kind] for kind in (*kinds, "all"))] for way in ways], whole=100),
        Table("Labels of the thought that are right", ("label", "%"), list(labels.items())),
        Table("Replies that are not right", ("exchange", "asked", "reply", "one right reply"),
              wrong),
    ])  # fmt: skip


@cache
def _script() -> tuple[Callable[[str], str], Any]:
    """What makes texts comparable in the world's script, and the world, read once.

    Raises InputError outside of a checkout.
    """
    try:
        from common_utils.tiny_world import world
    except ImportError as error:
        raise InputError(
            f"tiny_world: {error}; the world's script lies in common_utils of a checkout: run "
            "from its root"
        ) from error
    return world.normalise, world.load_world()
