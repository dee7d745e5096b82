"""How suites run: items to predictions, predictions to scores, scores to a report.

    OUT/settings.json      what the predictions depend on; another model or seed is refused
    OUT/predictions.jsonl  one raw line an item; a second run goes on behind the last, and asks
                           again what failed, up to MOST_TRIES times over all runs, and what has
                           other sounds now
    OUT/audio/             what the system said
    OUT/scores.json        measures with intervals, timings, settings, versions
    OUT/report.html .md    the same to look at

A new suite touches two files: its own module, whose `build(run)` gives a Suite, and __main__.py (a
row of SUITES of the same name). batch.py answers lists without a suite, on the same journal.
"""

import json
import platform
import re
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from osum_echat import cli, files, logs
from osum_echat import device as devices
from osum_echat.data.sources import Dropped, json_object
from osum_echat.errors import DataError, InputError, OsumError
from osum_echat.evaluation import report
from osum_echat.evaluation.report import Outcome, Table
from osum_echat.files import KeyedJournal, whole_file, write_json
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import Reply
from osum_echat.inference.request import Source
from osum_echat.ray_pool import Pool, as_done

LOG = logs.logger(__name__)
SETTINGS, PREDICTIONS = "settings.json", "predictions.jsonl"
JUDGEMENTS, EMOTIONS, NEUTRAL, HEARD, LIKENESS = (      # what is kept of measuring predictions
    f"{name}.jsonl" for name in ("judgements", "reply_emotions", "neutral", "heard", "similarity"))
PACKAGES = ("torch", "transformers", "numpy", "onnxruntime", "soundfile")
DIGESTED, PIECE_BYTES = 1024, 4096      # pieces of each file of a model, spread over it
ASKED_AT_ONCE = 8                       # items that share a batch
MOST_TRIES = 3                          # of an item that fails, one a run
FAULTS_IN_A_ROW = 8     # answers that failed for no reason of the data: the machine is at fault
SHOWN_LETTERS = 60                      # of a setting in a message
Prediction = dict[str, Any]


class Keyed(Protocol):
    """An item; its key is its own in the whole suite."""

    @property
    def key(self) -> str: """Its name."""


Item = TypeVar("Item", bound=Keyed)
Thing = TypeVar("Thing")
Answers = Sequence[Prediction | OsumError]
Ask = Callable[[Sequence[Item], Path], Answers]


@dataclass(frozen=True)
class Suite(Generic[Item]):
    """One kind of evaluation, its options settled.

    items: what is asked, always in the same order; ask: a raw answer to each of some items, or why
    there is none, files go to the folder; score: what all answers amount to; kind: items of one
    kind may be asked together, None: alone; sounds: files and words that an item's answer depends
    on; lost: where a line of the data cannot be used, and why; fixed: settings that predictions
    depend on; shown: other ones.
    """

    title: str
    items: Sequence[Item]
    ask: Ask[Item]
    score: Callable[[Sequence[Prediction], Path], Outcome]
    kind: Callable[[Item], Hashable | None] = lambda item: ""
    sounds: Callable[[Item], Iterable[Path | str]] = lambda item: ()
    lost: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


class Model:
    """The system under test, loaded when the first answer is needed."""

    def __init__(self, source: str, load: Callable[[], EChat]) -> None:
        self.source, self._load = source, load
        self.is_warm = False            # has answered something since it was loaded

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.source, self._load)     # each worker of Ray loads it anew

    @cached_property
    def assistant(self) -> EChat:
        return self._load()


def digest_of(source: str) -> str:
    """A digest of a model's files: their names, sizes and pieces of each, so that it is quick.

    Those of folders in its folders are no part of it. Of a model of the hub, of its name.
    """
    place = Path(source)
    digest = sha256(source.encode() if not place.exists() else b"")
    every = [place] if place.is_file() else [*place.glob("*"), *place.glob("*/*")]
    for path in sorted(every):
        if path.is_file():
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(f"{path.name} {size} ".encode())
                for start in range(0, size, max(PIECE_BYTES, size // DIGESTED)):
                    file.seek(start)
                    digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """One run of a suite: its name, the options of its command, the model."""

    name: str
    options: Namespace
    model: Model

    def ask(
        self, items: Sequence[Item], source: Callable[[Item], Source],
        kept: Callable[[Item, Reply], Prediction], **options: Any,
    ) -> list[Prediction | OsumError]:  # fmt: skip
        """What is kept of the assistant's reply to each item, or why there is none.

        source: what is asked; kept: what is written down. Either may raise an OsumError for its
        item. Each item draws from its own seed; options: those of `EChat.reply_many`.
        """
        found: list[Any] = [_tried(source, item) for item in items]
        asked = [place for place, one in enumerate(found) if not isinstance(one, OsumError)]
        replies = self.model.assistant.reply_many(
            [found[place] for place in asked], greedy=self.options.greedy, batch_size=len(items),
            seed=[seed_of(self.options.seed, items[place].key) for place in asked], **options,
        )  # fmt: skip
        for place, reply in zip(asked, replies, strict=True):
            found[place] = _tried(kept, items[place], reply) if isinstance(reply, Reply) else reply
        return found


def _tried(work: Callable[..., Thing], *given: Any) -> Thing | OsumError:
    """What the work gives, or why it gives nothing."""
    try:
        return work(*given)
    except OsumError as error:
        return error


def run(suite: Suite[Item], asked: Run) -> tuple[Outcome, int]:
    """Do what is left to do of a suite, score it and write its report. Also: how many items failed.

    Raises InputError where OUT holds predictions of other settings, and for no items.
    """
    out, fixed = asked.options.out, _fixed(suite, asked)
    if asked.options.overwrite:
        clear(out, [out / name for name in (PREDICTIONS, JUDGEMENTS, EMOTIONS, NEUTRAL, HEARD,
                                            LIKENESS, SETTINGS)])  # fmt: skip
    settle(out, fixed, answers=[out / PREDICTIONS])
    if not suite.items:
        why = f" ({next(iter(suite.lost.values()))})" if suite.lost else ""
        raise InputError(f"{asked.name}: no items in --data{why}; see --help for what it reads")
    keys = [item.key for item in suite.items]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise InputError(f"{asked.name}: {len(twice)} keys of --data stand there twice, as "
                         f"{twice[0]} does; give each item its own")  # fmt: skip
    with KeyedJournal(out / PREDICTIONS) as lines:
        _predict(suite, asked, lines)
        predictions = [lines.found[key] for key in keys]
    outcome = suite.score(predictions, out)
    failed = {one["key"]: one["error"] for one in predictions if "error" in one}
    failed |= suite.lost
    _write(suite, asked, outcome, predictions, failed, fixed)
    return outcome, len(failed)


def _fixed(suite: Suite[Item], asked: Run) -> dict[str, Any]:
    """What the predictions depend on. The judge and the look of the report may change."""
    options = asked.options
    loaded = {name: value and str(value) for name, value in cli.loading(options).items()
              if name != "device"}  # fmt: skip
    source = asked.model.source
    return {
        "suite": asked.name, "model": source, "model files": digest_of(source),
        "data": str(Path(options.data).resolve()), "seed": options.seed, "greedy": options.greedy,
        **loaded, **suite.fixed,
    }  # fmt: skip


def _predict(suite: Suite[Item], asked: Run, lines: KeyedJournal) -> None:
    """Ask what is left: one item harms no other.

    What shares a batch depends on the items alone: where a kill left half of a batch, the whole is
    asked again, so that a run with stops computes the same numbers as one without.
    """
    stamps = {item.key: stamp(suite.sounds(item)) for item in suite.items}
    left = {key for key, own in stamps.items() if is_left(lines.found.get(key), own)}
    if len(left) < len(stamps):
        LOG.info("%s: %d of %d items are there", asked.name, len(stamps) - len(left), len(stamps))
    if not left:
        return
    todo = [batch for batch in batches(suite) if not left.isdisjoint(item.key for item in batch)]
    options = asked.options
    pool = Pool(options.ray, options.workers, options.device) if options.ray else None
    start = partial(asker, suite.ask, asked)
    for place, answers in logs.progress(as_done(pool, start, todo), asked.name, len(todo)):
        made = {item.key: answer for item, answer in zip(todo[place], answers, strict=True)
                if item.key in left}  # fmt: skip
        for key, kept in made.items():
            if "error" in kept:
                kept["tries"] += lines.found.get(key, {}).get("tries", 0)
            kept |= {"key": key} | ({"sounds": stamps[key]} if stamps[key] else {})
        lines.add(*made.values())


def asker(ask: Ask[Item], asked: Run) -> Callable[[Sequence[Item]], list[Prediction]]:
    """Load the model, and give what asks it a batch of the suite."""
    _ = asked.model.assistant           # a model that cannot be loaded is no fault of an item
    isolated: Isolated[Item] = Isolated(lambda batch: ask(batch, asked.options.out))
    return lambda batch: [record_of(f"{asked.name}: {item.key}", answer)
                          for item, answer in zip(batch, isolated(batch), strict=True)]


def is_left(found: Prediction | None, stamp: str | None, most_tries: int = MOST_TRIES) -> bool:
    """Whether an item is still to be asked, or once more: it failed, or its sounds have changed."""
    if found is None or (found.get("sounds") or stamp) != stamp:
        return True
    return found.get("error") is not None and found.get("tries", 1) < most_tries


def stamp(parts: Iterable[Path | str]) -> str | None:
    """Changes with the name, size or time of any of these files, and with words; None for none."""
    told = []
    for one in parts:
        if isinstance(one, str):
            told.append(one)
            continue
        try:
            stat = one.stat()
            told.append(f"{one.name} {stat.st_size} {stat.st_mtime_ns}")
        except (OSError, ValueError):
            told.append(f"{one.name} absent")
    return f"{zlib.crc32(' '.join(told).encode(errors='replace')):08x}" if told else None


def record_of(name: str, answer: Prediction | Exception) -> Prediction:
    """An answer as it is kept."""
    if not isinstance(answer, Exception):
        return answer
    own = isinstance(answer, OsumError)
    error = " ".join((str(answer) if own else f"{type(answer).__name__}: {answer}").split())
    LOG.warning("%s: %s", name, error)
    return {"error": error, "tries": 1}


class Isolated(Generic[Thing]):
    """Asks in batches; what breaks a batch is looked for one by one, so that it harms no other."""

    def __init__(self, ask: Callable[[Sequence[Thing]], Sequence[Any]]) -> None:
        self._ask, self._faults = ask, 0

    def __call__(self, batch: Sequence[Thing]) -> Sequence[Any]:
        """Raises what is no OsumError after FAULTS_IN_A_ROW of them."""
        try:
            answers = self._ask(batch)
        except Exception as error:  # whatever one item breaks, the others are answered
            if len(batch) > 1:
                LOG.warning("%d items together: %s; each by itself now", len(batch), error)
                return [answer for one in batch for answer in self([one])]
            self._faults += not isinstance(error, OsumError)
            if self._faults >= FAULTS_IN_A_ROW and not devices.is_out_of_memory(error):
                raise
            return [error]
        self._faults = 0
        return answers


def batches(suite: Suite[Item]) -> list[list[Item]]:
    """The items of a suite, those of one kind up to ASKED_AT_ONCE together."""
    made: list[list[Item]] = []
    filling: dict[Hashable, list[Item]] = {}
    for item in suite.items:
        kind = suite.kind(item)
        batch = [] if kind is None else filling.get(kind, [])
        if not 0 < len(batch) < ASKED_AT_ONCE:
            batch = filling[kind] = []
            made.append(batch)
        batch.append(item)
    return made


def settle(
    out: Path, own: Mapping[str, Any], advice: str = "choose another --out, or --overwrite",
    answers: Iterable[Path] | None = None,
) -> None:
    """Compare with the settings that `out` was made with, or write them down.

    own: plain values by name; names that only one of both has are not compared; answers: files that
    hold what was made, until then the settings are written anew. Raises InputError naming those
    that differ.
    """
    place = out / SETTINGS
    wanted = json.loads(json.dumps(own))
    is_begun = answers is None or any(one.exists() and one.stat().st_size for one in answers)
    if not (place.exists() and is_begun):
        write_json(place, wanted)
        return
    try:
        earlier = json.loads(place.read_bytes())
        other = [name for name in wanted if earlier.get(name, wanted[name]) != wanted[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{place}: not read ({error}); {advice}") from error
    if other:
        was, now = (json.dumps(one[other[0]], ensure_ascii=False)[:SHOWN_LETTERS]
                    for one in (earlier, wanted))  # fmt: skip
        raise InputError(f"--out {out}: holds answers of another {', '.join(other)} ({was}, not "
                         f"{now}); {advice}")  # fmt: skip


def clear(out: Path, made: Iterable[Path]) -> None:
    """Remove what an earlier run has made. Raises InputError where that cannot be done."""
    try:
        for path in made:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be cleared ({error}); remove it") from error


def _write(
    suite: Suite[Item], asked: Run, outcome: Outcome, predictions: Sequence[Prediction],
    failed: Mapping[str, str], fixed: Mapping[str, Any],
) -> None:  # fmt: skip
    options = asked.options
    settings = {**fixed, **suite.shown, "device": options.device, "limit": options.limit}
    used = versions()
    write_json(options.out / "scores.json", {
        "suite": asked.name, "items": len(predictions), "failed": failed, "settings": settings,
        "versions": used,
        "measures": {name: one.to_json() for name, one in outcome.measures.items()},
        "timings": {name: one.to_json() for name, one in outcome.timings.items()},
        "details": outcome.details,
    })  # fmt: skip
    blocks = [*outcome.blocks]
    if failed:
        tries = {one["key"]: str(one["tries"]) for one in predictions if "error" in one}
        rows = [(key, why, tries.get(key, "-")) for key, why in failed.items()]
        note = f"Started again, the same command asks them again, up to {MOST_TRIES} times in all."
        blocks.append(Table("Items that failed", ("item", "why", "tries"), rows, note))
    report.write(report.Page(suite.title, blocks, settings, used), options.out)
    LOG.info("%s: %s", asked.name, options.out / "report.html")


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that figures depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("osum-echat", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def of_reply(reply: Reply, out: Path, name: str, folder: str = "audio") -> Prediction:
    """A reply as it is kept; its sound goes to `out`/`folder`/`name`.wav, in 16 bits."""
    wav = None
    if reply.wave is not None and reply.sample_rate_hz is not None:
        import soundfile

        wav = f"{folder}/{file_name(name)}.wav"
        clipped = np.clip(reply.wave.detach().float().cpu().numpy(), -1.0, 1.0)
        with whole_file(out / wav) as file:
            soundfile.write(file, clipped, reply.sample_rate_hz, subtype="PCM_16", format="WAV")
    return {
        "task": reply.task, "heard": reply.heard, "thought": reply.thought,
        "labels": asdict(reply.labels), "text": reply.text,
        "speech_tokens": len(reply.speech_tokens), "wav": wav, "audio_in_s": reply.audio_in_s,
        "audio_out_s": reply.audio_out_s, "timings": asdict(reply.timings),
    }  # fmt: skip


def seed_of(seed: int, key: str) -> int:
    """A seed that belongs to one item, whatever came before it."""
    return zlib.crc32(f"{seed}:{key}".encode())


def file_name(key: str) -> str:
    """A key as a file name: its own letters, and a digest where some had to go."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", key)
    if plain == key and len(key) <= 80:
        return plain
    return f"{plain[:60]}-{zlib.crc32(key.encode(errors='replace')):08x}"


def made(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those that did not fail."""
    return [one for one in predictions if "error" not in one]


def measured(
    place: Path, made: Sequence[Prediction], field: str, measure: Callable[[Prediction], Any],
    by: str = "",
) -> dict[str, Any]:  # fmt: skip
    """What `measure` finds in each reply, by key; kept in a journal, so that each is measured once.

    field: what the journal calls it; by: what measures, where there are several. A reply that was
    made from other sounds is measured anew.
    """
    found = {}
    with KeyedJournal(place) as kept:
        for one in logs.progress(made, field, len(made)):
            own = f"{one['key']}:{one['sounds']}" if "sounds" in one else str(one["key"])
            key = f"{by}:{own}" if by else own
            if key not in kept.found:
                kept.add({"key": key, field: measure(one)})
            found[one["key"]] = kept.found[key][field]
    return found


def limited(
    items: Sequence[Thing], limit: int | None, kind: Callable[[Thing], Hashable]
) -> list[Thing]:
    """The first `limit` items, taken by turns from each kind so that none is left out."""
    if limit is None or limit >= len(items):
        return list(items)
    queues: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        queues.setdefault(kind(item), []).append(place)
    turns = [places[turn] for turn in range(len(items)) for places in queues.values()
             if turn < len(places)]  # fmt: skip
    return [items[place] for place in sorted(turns[:limit])]


Read = tuple[list[Thing], dict[str, str]]       # what was found; what is lost: where, why


def read_lines(path: Path, make: Callable[[str, str], Thing]) -> Read[Thing]:
    """What `make` finds in each line that is not empty, told where it stands.

    One bad line costs itself only: make may raise an OsumError. Raises InputError for a file that
    cannot be read.
    """
    found: list[Thing] = []
    lost: dict[str, str] = {}

    def lose(where: str, why: str) -> None:
        LOG.warning("%s", why)
        lost[where] = why

    for number, text in files.read_lines(path, "see --help", lambda told: lose(
            told.rpartition(": ")[0], f"{told}; mend or remove the line")):  # fmt: skip
        where = f"{path} line {number}"
        try:
            found.append(make(text, where))
        except OsumError as error:
            lose(where, str(error))
    return found, lost


def read_objects(path: Path, make: Callable[[dict[str, Any], str], Thing]) -> Read[Thing]:
    """The same for a jsonl of objects."""
    return read_lines(path, lambda text, where: make(_object(text, where), where))


def _object(text: str, where: str) -> dict[str, Any]:
    raw = json_object(text.encode(), where, where)
    if isinstance(raw, Dropped):
        raise DataError(f"{raw.detail} ({raw.reason}); mend or remove the line")
    return raw
