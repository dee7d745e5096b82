"""A small part of the tiny world: what an ablation learns from, is asked, and is scored by.

The part holds the situations that have the most test questions, with every voice. Only single
turns count: dialogues and identity questions test other things than what is left out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from common_utils.tiny_world.world import load_world
from osum_echat.errors import InputError
from osum_echat.evaluation import echat_eval
from osum_echat.evaluation.echat_eval import WORLD_FILE
from osum_echat.evaluation.runner import read_objects
from osum_echat.files import write_jsonl
from osum_echat.records import Turn, Utterance

Exchange = dict[str, Any]
UNDERSTANDING, THINKING, PLAIN = "understand", "s2t_think", "s2t"


@dataclass(frozen=True, slots=True)
class Question:
    """One test exchange. category: what it tests, as EChat-eval's tasks do."""

    exchange: Exchange
    category: str
    utterance: Utterance

    @property
    def key(self) -> str:
        return str(self.exchange["key"])


class Part:
    """Some situations of the world: their training lists and test questions."""

    def __init__(self, train: Path, tests: Sequence[Path], situations: int) -> None:
        """train: folder with exchanges.jsonl and lists; tests: folders with exchanges.jsonl.

        Raises InputError for a folder that lacks them, or where nothing is left.
        """
        self.train, self.world = train, load_world()
        if situations < 1:
            raise InputError(f"--situations {situations}: give 1 or more")
        known = {one.name for one in self.world.situations}
        asked = [one for folder in tests for one in _questions(folder)
                 if one.exchange["situation"] in known]  # fmt: skip
        counts = Counter(one.exchange["situation"] for one in asked)
        ranked = sorted(counts, key=lambda name: (-counts[name], name))
        self.situations = frozenset(ranked[:situations])
        self.questions = [one for one in asked if one.exchange["situation"] in self.situations]
        self.exchanges = {one["key"]: one for one in _exchanges(train) if self._is_in(one)}
        if not self.questions or not self.exchanges:
            raise InputError(f"{train}: no single turns of the situations that --test asks for; "
                             "make both by python -m common_utils.tiny_world.make")  # fmt: skip

    def _is_in(self, exchange: Exchange) -> bool:
        return exchange["kind"] == "single" and exchange["situation"] in self.situations

    def write_list(self, name: str, share: float, place: Path) -> int:
        """Write that share of the exchanges of one training list; how many lines it has.

        A smaller share is a part of a larger one. Raises InputError without the list.
        """
        chosen = kept(self.exchanges, share)
        source = self.train / f"{name}.list"
        count = write_jsonl(place, (
            raw | {"wav": str((self.train / raw["wav"]).resolve())}
            for raw in _lines(source) if raw["key"].rpartition("-")[0] in chosen
        ))  # fmt: skip
        if not count:
            raise InputError(f"{source}: no line of the chosen exchanges; make the lists by "
                             "python -m common_utils.tiny_world.lists")  # fmt: skip
        return count


def kept(keys: Iterable[str], share: float) -> set[str]:
    """That share of the keys, always the same ones; smaller shares are parts of larger ones."""
    ranked = sorted(keys, key=lambda key: (crc32(key.encode()), key))
    return set(ranked[: max(1, round(share * len(ranked)))])


def _questions(folder: Path) -> list[Question]:
    """The single turns of a test folder with what they test."""
    raw = {one["key"]: one for one in _exchanges(folder)}
    return [Question(raw[item.key], item.category, Utterance(item.key, PLAIN, Turn(audio=item.wav)))
            for item in echat_eval.read(folder)[0]
            if raw[item.key]["kind"] == "single"]  # fmt: skip


def _exchanges(folder: Path) -> list[Exchange]:
    return _lines(folder / WORLD_FILE, "make")


def _lines(place: Path, tool: str = "lists") -> list[dict[str, Any]]:
    if not place.is_file():
        raise InputError(f"{place}: not there; make it by python -m common_utils.tiny_world.{tool}")
    return read_objects(place, lambda raw, _: raw)[0]
