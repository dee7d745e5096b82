"""How every suite runs: items to predictions, predictions to scores, scores to a report.

    OUT/settings.json      what the predictions depend on; another model or seed is refused
    OUT/predictions.jsonl  one raw line an item, flushed; a second run goes on behind the last, and
                           asks what failed again, up to MOST_TRIES times over all runs
    OUT/audio/             what the system said
    OUT/scores.json        measures with intervals, timings, settings, versions
    OUT/report.html .md    the same to look at
"""

import platform
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

from osum_echat import logs
from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import kept_settings, report
from osum_echat.evaluation.predictions import Lines, Prediction, failed, in_order
from osum_echat.evaluation.results import Outcome, Table
from osum_echat.files import write_json
from osum_echat.inference.assistant import EChat

LOG = logs.logger(__name__)
PACKAGES = ("torch", "transformers", "numpy", "onnxruntime", "soundfile")
DIGESTED_BYTES = 1 << 20                # of each file of a model, beside its size
ASKED_AT_ONCE = 8                       # items that share a batch
# What --overwrite removes: all that is kept of answers, of their sounds, and of what judges said.
MADE = ("predictions.jsonl", "judgements.jsonl", "reply_emotions.jsonl", "neutral.json",
        "heard.jsonl", "similarity.jsonl", kept_settings.FILE)  # fmt: skip
MOST_TRIES = 3                          # of an item that fails, one a run


class Keyed(Protocol):
    """An item; its key is its own in the whole suite."""

    @property
    def key(self) -> str: """Its name."""


Item = TypeVar("Item", bound=Keyed)


class Suite(Protocol[Item]):
    """One kind of evaluation, its options settled."""

    name: str
    title: str

    def items(self) -> Sequence[Item]: """What is asked, always in the same order."""

    def kind(self, item: Item) -> Hashable | None:
        """Items of one kind may be asked together; None: this one is asked alone."""

    def predict(self, items: Sequence[Item], out: Path) -> Sequence[Prediction | OsumError]:
        """A raw answer to each item, or why there is none; files go to out."""

    def score(self, predictions: Sequence[Prediction], out: Path) -> Outcome:
        """What the answers amount to; those that failed are among them, with an `error`."""


class Model:
    """The system under test, loaded when the first answer is needed."""

    def __init__(self, source: str, load: Callable[[], EChat]) -> None:
        self.source, self._load = source, load
        self._assistant: EChat | None = None
        self.is_warm = False            # has answered something since it was loaded

    @property
    def assistant(self) -> EChat:
        if self._assistant is None:
            self._assistant = self._load()
        return self._assistant

    def fingerprint(self) -> str:
        """Changes with the files of the model; for a model of the hub, its name."""
        place = Path(self.source)
        digest = sha256(self.source.encode() if not place.exists() else b"")
        for path in sorted([place] if place.is_file() else place.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(f"{path.name} {path.stat().st_size} ".encode())
                    digest.update(file.read(DIGESTED_BYTES))
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run goes and what it is told. fixed: what predictions depend on; shown: the rest."""

    out: Path
    fixed: dict[str, Any]
    shown: dict[str, Any]
    overwrite: bool = False


def run(suite: Suite[Item], asked: Run) -> Outcome:
    """Do what is left to do of a suite, score it and write its report.

    Raises InputError where OUT holds predictions of other settings.
    """
    _settle(asked)
    items = suite.items()
    if not items:
        raise InputError(f"{suite.name}: no items in --data; see --help for what it reads")
    keys = [item.key for item in items]
    if doubles := len(keys) - len(set(keys)):
        raise InputError(f"{suite.name}: {doubles} keys of --data stand there twice; make each own")
    with Lines(asked.out / "predictions.jsonl") as lines:
        left = {key for key in keys if _is_left(lines.found.get(key))}
        if len(left) < len(items):
            LOG.info("%s: %d of %d items are there", suite.name, len(items) - len(left), len(items))
        for key, made in logs.progress(_asked(suite, left, asked.out), suite.name, len(left)):
            if "error" in made:
                LOG.warning("%s: %s: %s", suite.name, key, made["error"])
                made["tries"] = lines.found.get(key, {}).get("tries", 0) + 1
            lines.add(made | {"key": key})
        predictions = in_order(keys, lines.found)
    outcome = suite.score(predictions, asked.out)
    _write(suite, asked, outcome, predictions)
    return outcome


def _is_left(found: Prediction | None) -> bool:
    """Whether an item is still to be asked, or once more."""
    return found is None or ("error" in found and found.get("tries", 1) < MOST_TRIES)


def _asked(suite: Suite[Item], left: set[str], out: Path) -> Iterator[tuple[str, Prediction]]:
    """Keys that are left with their answers, or why there is none: one item harms no other.

    What shares a batch depends on the items alone: where a kill left half of a batch, the whole is
    asked again, so that a run with stops computes the same numbers as one without.
    """
    for batch in batches(suite):
        if not left.isdisjoint(item.key for item in batch):
            for item, answer in zip(batch, _answers(suite, batch, out), strict=True):
                if item.key not in left:
                    continue
                if isinstance(answer, OsumError):
                    yield item.key, {"error": str(answer)}
                else:
                    yield item.key, dict(answer)


def _answers(
    suite: Suite[Item], batch: Sequence[Item], out: Path
) -> Sequence[Prediction | OsumError]:
    try:
        return suite.predict(batch, out)
    except OsumError as error:
        if len(batch) > 1:
            return [answer for item in batch for answer in _answers(suite, [item], out)]
        return [error]


def batches(suite: Suite[Item]) -> list[list[Item]]:
    """The items of a suite, those of one kind up to ASKED_AT_ONCE together."""
    made: list[list[Item]] = []
    filling: dict[Hashable, list[Item]] = {}
    for item in suite.items():
        kind = suite.kind(item)
        batch = filling.get(kind) if kind is not None else None
        if batch is None or len(batch) >= ASKED_AT_ONCE:
            batch = []
            made.append(batch)
            if kind is not None:
                filling[kind] = batch
        batch.append(item)
    return made


def _settle(asked: Run) -> None:
    """Make sure that what OUT holds was made with the same settings."""
    try:
        if asked.overwrite:
            for name in MADE:
                (asked.out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out {asked.out}: cannot be cleared ({error}); remove it") from error
    kept_settings.settle(asked.out, asked.fixed)


def _write(
    suite: Suite[Item], asked: Run, outcome: Outcome, predictions: Sequence[Prediction]
) -> None:
    lost = failed(predictions)
    settings, used = asked.fixed | asked.shown, versions()
    notes = {
        "suite": suite.name,
        "items": len(predictions),
        "failed": {one["key"]: one["error"] for one in lost},
        "settings": settings,
        "versions": used,
    }
    write_json(asked.out / "scores.json", {
        **notes,
        "measures": {name: one.to_json() for name, one in outcome.measures.items()},
        "timings": {name: one.to_json() for name, one in outcome.timings.items()},
        "details": outcome.details,
    })  # fmt: skip
    blocks = [*outcome.blocks]
    if lost:
        rows = [(one["key"], one["error"], str(one.get("tries", 1))) for one in lost]
        note = f"Started again, the same command asks them again, up to {MOST_TRIES} times in all."
        blocks.append(Table("Items that failed", ("item", "why", "tries"), rows, note))
    page = report.Page(suite.title, blocks, settings, used)
    report.write(page, asked.out)
    LOG.info("%s: %s", suite.name, asked.out / "report.html")


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that figures depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("osum-echat", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found
