"""A corpus counted: hours, tasks, labels, lengths, and every member that cannot be used."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

from osum_echat import audio
from osum_echat.corpus import pictures
from osum_echat.corpus.jobs import in_order
from osum_echat.data.files import Files
from osum_echat.data.loader import ListSettings
from osum_echat.data.manifest import open_source
from osum_echat.data.sources import Dropped, Source
from osum_echat.errors import InputError
from osum_echat.files import whole_file
from osum_echat.logs import progress
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.tasks import task_for

PORTION = 100  # units that a process reads in one go
TOKENS_PER_S = 25
SHOWN_BAD, SHOWN_LABELS = 5, 12
BAD_FILE, LENGTHS_FILE = "bad_members.txt", "lengths.png"
UNHEARD = "-"


@dataclass(slots=True)
class Tally:
    """What was counted so far. Lengths are whole tenths of a second."""

    utterances: int = 0
    heard_s: float = 0.0  # of the users, earlier turns included
    reply_tokens: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    bad: list[Dropped] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another portion in."""
        self.utterances += other.utterances
        self.heard_s += other.heard_s
        self.reply_tokens += other.reply_tokens
        self.tasks += other.tasks
        self.labels += other.labels
        self.lengths += other.lengths
        self.bad += other.bad


@dataclass(frozen=True, slots=True)
class Portion:
    """Some units of a list."""

    path: str
    task: str | None
    schemes: tuple[str, ...]
    start: int
    end: int


def report(
    lists: dict[str, ListSettings], out: Path, workers: int = 1, schemes: tuple[str, ...] = ()
) -> Iterator[str]:
    """Scan every list; lines to print. Writes lengths.png and bad_members.txt into `out`."""
    tallies: dict[str, Tally] = {}
    for name, entry in lists.items():
        tallies[name] = scan(name, entry, workers, schemes)
        yield f"== {name}: {entry.path}"
        yield from _lines(tallies[name])
        yield ""
    with whole_file(out / BAD_FILE) as file:
        for name, tally in tallies.items():
            for one in tally.bad:
                file.write(f"{name}\t{one.reason}\t{' '.join(one.detail.split())}\n".encode())
    yield f"bad members: {out / BAD_FILE}"
    lengths = {name: tally.lengths for name, tally in tallies.items()}
    yield f"drawn: {pictures.draw_lengths(lengths, out / LENGTHS_FILE)}"


def scan(name: str, entry: ListSettings, workers: int = 1, schemes: tuple[str, ...] = ()) -> Tally:
    """Read and decode every utterance of a list. Raises DataError for one that cannot be opened."""
    if workers < 1:
        raise InputError(f"workers {workers}: give 1 or more")
    units = len(_source(entry.path, entry.task, schemes))
    portions = [
        Portion(entry.path, entry.task, schemes, start, min(start + PORTION, units))
        for start in range(0, units, PORTION)
    ]
    whole = Tally()
    for tally in progress(in_order(count, portions, workers), name, len(portions)):
        whole.add(tally)
    return whole


def count(portion: Portion) -> Tally:
    """What some units hold."""
    tally = Tally()
    source = _source(portion.path, portion.task, portion.schemes)
    for unit in range(portion.start, portion.end):
        for utterance in source.read(unit):
            fault = utterance if isinstance(utterance, Dropped) else _count(utterance, tally)
            if fault is not None:
                tally.bad.append(fault)
    return tally


@lru_cache(maxsize=1)
def _source(path: str, task: str | None, schemes: tuple[str, ...]) -> Source:
    return open_source(path, path, task, Files(schemes))


def _count(utterance: Utterance, tally: Tally) -> Dropped | None:
    """Count an utterance in, or say why it cannot be used."""
    try:
        task = task_for(utterance.task)
        turns = (*utterance.history, utterance.user) if task.hears else ()
        if task.hears and utterance.user.audio is None:
            return Dropped("no audio", utterance.key)
        lengths = [_length_s(turn) for turn in turns if turn.audio is not None]
    except InputError as error:
        return Dropped("audio or task cannot be used", f"{utterance.key}: {error}")
    tally.utterances += 1
    tally.tasks[utterance.task] += 1
    tally.reply_tokens += len(utterance.user.reply_speech)
    tally.heard_s += sum(lengths)
    if lengths:
        tally.lengths[round(lengths[-1] * 10)] += 1
    for each in fields(Labels):
        tally.labels[each.name, getattr(utterance.labels, each.name) or UNHEARD] += 1
    return None


def _length_s(turn: Turn) -> float:
    assert turn.audio is not None, "asked for the length of a turn without audio"
    samples = audio.load(turn.audio, segment_s=turn.segment_s)
    return len(samples) / audio.SAMPLE_RATE_HZ


def _lines(tally: Tally) -> Iterator[str]:
    """What was counted, in words."""
    yield (
        f"   {tally.utterances} utterances, {_time(tally.heard_s)} heard, "
        f"{_time(tally.reply_tokens / TOKENS_PER_S)} of reply tokens, {len(tally.bad)} bad"
    )
    if tally.lengths:
        tenths = sorted(tally.lengths.elements())
        shown = [tenths[0], tenths[len(tenths) // 2], tenths[-1]]
        low, middle, high = (f"{one / 10:.1f} s" for one in shown)
        yield f"   lengths: {low} to {high}, half of them up to {middle}"
    for task, number in tally.tasks.most_common():
        yield f"   task {task}: {number}"
    for each in fields(Labels):
        found = [(value, number) for (name, value), number in tally.labels.most_common()
                 if name == each.name]  # fmt: skip
        shown_labels = ", ".join(f"{value} {number}" for value, number in found[:SHOWN_LABELS])
        yield f"   {each.name}: {shown_labels}" + (" ..." if len(found) > SHOWN_LABELS else "")
    reasons = Counter(one.reason for one in tally.bad)
    for reason, number in reasons.most_common():
        yield f"   bad: {reason}: {number}"
        examples = [one.detail for one in tally.bad if one.reason == reason]
        yield from (f"      {detail}" for detail in examples[:SHOWN_BAD])


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"
