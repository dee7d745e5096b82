"""The thinker's rows of stage 3 as raw lists without sound: one list a task, to train and to check.

Words and labels stand in for sound (prepare.audio_as_text).

    python -m common_utils.small_model.thinker_lists --parts build/parts --out build/thinker/rows
"""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from common_utils.command import command
from common_utils.small_model.dialogues import Example, examples
from common_utils.small_model.manner import NO_EVENT
from common_utils.small_model.pieces import heard_words
from common_utils.small_model.ranking import Ranker
from common_utils.small_model.topics import sentence
from common_utils.tiny_world.lists import (
    FULL_TAG,
    HISTORY_TAG,
    SPEECH_TAGS,
    T2T_TAG,
    TEXT_ONLY,
    TEXT_TAGS,
)
from common_utils.tiny_world.world import fraction
from osum_echat.files import write_jsonl
from osum_echat.logs import logger
from osum_echat.records import LIST_KEYS

CHECK_SHARE = 0.02  # of the examples, that are not trained on
TAGS = SPEECH_TAGS | TEXT_TAGS

log = logger(__name__)


def row(example: Example, tag: str) -> dict[str, Any]:
    """One object of a raw list."""
    extra: dict[str, Any] = {"q_txt": example.heard}
    named = {key: getattr(example.labels, field) for field, key in LIST_KEYS.items()}
    extra |= {name: value for name, value in named.items() if value}
    if tag in (TAGS["s2s_think"], TAGS["s2t_think"]):
        extra["think_str"] = example.thought
    made = {"key": f"{example.key}", "txt": example.reply, "task": tag, "extra": extra}
    for number, (said, reply) in enumerate(example.earlier, start=1):
        made[f"wav_{number}"], made[f"txt_{number}"] = TEXT_ONLY, reply
        extra[f"q_txt_{number}"] = (heard_words(said) or "").strip()
    return made


def understanding(example: Example) -> dict[str, Any]:
    """A row that asks for words and labels."""
    labels = example.labels
    tags = "".join(
        f"<{label}>" for label in (labels.event, labels.age, labels.gender, labels.emotion)
    )
    return row(example, FULL_TAG) | {"txt": example.heard + tags}


def lists(found: Iterable[Example], rng: Random) -> dict[str, list[dict[str, Any]]]:
    """Rows by list: each example once with a thought, and some again without or in writing."""
    rows: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, made: dict[str, Any]) -> None:
        rows.setdefault(name, []).append(made | {"key": f"{made['key']}-{name}"})

    for one in found:
        if one.earlier:
            add("history", row(one, HISTORY_TAG))
            continue
        name = rng.choices(("s2s_think", "s2t_think"), weights=(0.75, 0.25))[0]
        add(name, row(one, TAGS[name]))
        if rng.random() < 0.45:
            name = rng.choices(("s2s", "s2t"), weights=(0.75, 0.25))[0]
            add(name, row(one, TAGS[name]))
        unheard = one.labels.emotion in (None, "NEUTRAL") and one.labels.event in (None, NO_EVENT)
        if one.question and unheard and rng.random() < 0.3:
            made = row(one, T2T_TAG)
            made["extra"]["question"] = sentence(one.question)
            add("t2t", made)
        if one.question and one.labels.age and rng.random() < 0.05:
            add("understand", understanding(one))
    return rows


def write(found: list[Example], out: Path, seed: int = 0) -> dict[str, int]:
    """Write train/*.list and check/*.list; returns the sizes of the training lists."""
    sizes = {}
    held = [one for one in found if fraction(f"check {one.key}") < CHECK_SHARE]
    for split, own in (("check", held), ("train", [one for one in found if one not in held])):
        for name, rows in lists(own, Random(f"lists {seed}")).items():
            Random(f"order {seed}").shuffle(rows)
            sizes[name] = write_jsonl(out / split / f"{name}.list", rows)
    return sizes


def make(parts: Path, out: Path, seed: int = 0, stock: Path | None = None) -> None:
    """Make the examples and write their lists."""
    found = examples(parts, seed, ranker=None if stock is None else Ranker(stock))
    sizes = write(found, out, seed)
    for what, counts in (("examples", Counter(one.source for one in found)), ("rows", sizes)):
        log.info("%s: %s", what, ", ".join(f"{name} {size}" for name, size in counts.items()))


main = command(make, parts="what parts.py unpacked", stock="the stock LLM, which chooses replies "
               "that fit (10 CPU minutes)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
