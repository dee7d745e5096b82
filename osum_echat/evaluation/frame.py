"""How every suite runs: items to predictions, predictions to scores, scores to a report.

    OUT/settings.json      what the predictions depend on; another model or seed is refused
    OUT/predictions.jsonl  one raw line an item, flushed; a second run goes on behind the last
    OUT/audio/             what the system said
    OUT/scores.json        measures with intervals, timings, settings, versions
    OUT/report.html .md    the same to look at
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

from osum_echat import logs
from osum_echat.assistant import EChat
from osum_echat.corpus.jobs import whole_file
from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import report
from osum_echat.evaluation.predictions import Lines, Prediction, failed, in_order
from osum_echat.evaluation.results import Outcome, Table

LOG = logs.logger(__name__)
PACKAGES = ("torch", "transformers", "numpy", "onnxruntime", "soundfile")
DIGESTED_BYTES = 1 << 20                # of each file of a model, beside its size


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

    def predict(self, item: Item, out: Path) -> Prediction: """One raw answer; files go to out."""

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
        left = [item for item in items if item.key not in lines.found]
        if len(left) < len(items):
            LOG.info("%s: %d of %d items are there", suite.name, len(items) - len(left), len(items))
        for item in logs.progress(left, suite.name, len(left)):
            lines.add(_predicted(suite, item, asked.out) | {"key": item.key})
        predictions = in_order(keys, lines.found)
    outcome = suite.score(predictions, asked.out)
    _write(suite, asked, outcome, predictions)
    return outcome


def _predicted(suite: Suite[Item], item: Item, out: Path) -> Prediction:
    """An answer, or why there is none: one item harms no other."""
    try:
        return suite.predict(item, out)
    except OsumError as error:
        LOG.warning("%s: %s: %s", suite.name, item.key, error)
        return {"error": str(error)}


def _settle(asked: Run) -> None:
    """Compare with the settings that OUT was made with, and write them down."""
    place = asked.out / "settings.json"
    fixed = json.loads(json.dumps(asked.fixed))
    try:
        if asked.overwrite:
            for name in ("predictions.jsonl", "judgements.jsonl", "settings.json"):
                (asked.out / name).unlink(missing_ok=True)
        if place.exists():
            earlier = json.loads(place.read_bytes())
            other = [name for name in fixed if earlier.get(name) != fixed[name]]
            if other:
                raise InputError(
                    f"--out {asked.out}: holds predictions made with another "
                    f"{', '.join(sorted(other))}; choose another --out, or --overwrite"
                )
            return
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"{place}: cannot be used ({error}); --overwrite starts anew") from error
    _dump(place, fixed)


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
    _dump(asked.out / "scores.json", {
        **notes,
        "measures": {name: one.to_json() for name, one in outcome.measures.items()},
        "timings": {name: one.to_json() for name, one in outcome.timings.items()},
        "details": outcome.details,
    })  # fmt: skip
    blocks = [*outcome.blocks]
    if lost:
        rows = [(one["key"], one["error"]) for one in lost]
        blocks.append(Table("Items that failed", ("item", "why"), rows))
    page = report.Page(suite.title, blocks, settings, used)
    report.write(page, asked.out)
    LOG.info("%s: %s", suite.name, asked.out / "report.html")


def _dump(path: Path, value: object) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that figures depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("osum-echat", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found
