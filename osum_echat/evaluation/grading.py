"""The results of a batch job scored task by task: words, labels, failures; as JSON and as text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from osum_echat.evaluation.clerk import transcript
from osum_echat.evaluation.parts import Record
from osum_echat.metrics import (
    Confusion,
    ErrorRate,
    error_rate,
    errors_of_each,
    interval,
    language_of,
    normalised_pair,
)
from osum_echat.tasks import task_for
from osum_echat.thinking import FIELDS

# How the words of a language are counted, and what the rate is called.
RATES = {"english": ("WER", "word"), "chinese": ("CER", "mixed")}
HEARD_FIELDS = tuple(name for name in FIELDS if name != "style")  # a style is the reply's own
_WIDEST = 12  # labels of a confusion that is printed


@dataclass(frozen=True, slots=True)
class WordScore:
    """Words heard against words said, in one language. low, high: 95 % bootstrap interval."""

    name: str  # WER or CER
    found: ErrorRate
    low: float
    high: float
    utterances: int

    def __str__(self) -> str:
        found = self.found
        return (
            f"{self.name}  {100 * found.rate:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"
            f"  {found.substitutions} wrong, {found.deletions} missing, {found.insertions} too "
            f"many of {found.total}; {self.utterances} utterances"
        )


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Labels found against labels listed. low, high: 95 % bootstrap interval of the accuracy."""

    confusion: Confusion
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Accuracy and macro-F1 beside the counts."""
        confusion = self.confusion
        return {
            "accuracy": confusion.accuracy, "low": self.low, "high": self.high,
            "macro_f1": confusion.macro_f1, "utterances": confusion.total, **asdict(confusion),
        }  # fmt: skip

    def __str__(self) -> str:
        confusion = self.confusion
        return (
            f"{100 * confusion.accuracy:.1f} % right [{100 * self.low:.1f}, {100 * self.high:.1f}]"
            f", macro-F1 {confusion.macro_f1:.3f}; {confusion.total} utterances"
        )


@dataclass(slots=True)
class TaskGrade:
    """One task of the list. words: by language; labels: by field."""

    task: str
    answered: int = 0
    failed: int = 0
    words: dict[str, WordScore] = field(default_factory=dict)
    labels: dict[str, LabelScore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grade:
    """All tasks of a list. unread: records that could not be read, and so belong to no task."""

    tasks: tuple[TaskGrade, ...]
    unread: int
    left_out: int

    @property
    def answered(self) -> int:
        return sum(task.answered for task in self.tasks)

    @property
    def failed(self) -> int:
        return sum(task.failed for task in self.tasks) + self.unread

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        tasks = {
            grade.task: {
                "answered": grade.answered,
                "failed": grade.failed,
                "words": {name: asdict(score) for name, score in grade.words.items()},
                "labels": {name: score.to_json() for name, score in grade.labels.items()},
            }
            for grade in self.tasks
        }
        return {"answered": self.answered, "failed": self.failed, "unread": self.unread,
                "left_out": self.left_out, "tasks": tasks}  # fmt: skip


def grade(records: Iterable[Record], language: str = "auto") -> Grade:
    """Score results. language: of the texts, auto: each by its reference.

    Utterances that failed are counted, and are in no other figure.
    """
    by_task: dict[str, list[Record]] = {}
    unread = left_out = 0
    for record in records:
        if "left_out" in record:
            left_out += 1
        elif record["task"] is None:
            unread += 1
        else:
            by_task.setdefault(record["task"], []).append(_kept(record))
    tasks = tuple(_task_grade(task, by_task[task], language) for task in sorted(by_task))
    return Grade(tasks, unread, left_out)


def _kept(record: Record) -> Record:
    """What scores need of a record: lists can be long."""
    names = ("error", "heard", "text", "labels", "reference_heard", "reference_labels")
    return {name: record.get(name) for name in names}


def _task_grade(name: str, records: Sequence[Record], language: str) -> TaskGrade:
    answered = [record for record in records if record["error"] is None]
    made = TaskGrade(name, len(answered), len(records) - len(answered))
    if answered:  # a task that is unknown has none
        made.words = dict(_word_scores(name, answered, language))
        made.labels = dict(_label_scores(name, answered))
    return made


def _word_scores(
    name: str, records: Sequence[Record], language: str
) -> Iterator[tuple[str, WordScore]]:
    """The error rate of each language that the references are in."""
    task = task_for(name)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        heard = transcript(record["text"]) if task.transcript else record["heard"]
        said = record["reference_heard"]
        if heard is None or not said:
            continue
        own = language_of(said) if language == "auto" else language
        pairs.setdefault(own, []).append(normalised_pair(said, heard, own))
    for own, found in sorted(pairs.items()):
        rate_name, unit = RATES[own]
        low, high = interval(*errors_of_each(found, unit))
        yield own, WordScore(rate_name, error_rate(found, unit), low, high, len(found))


def _label_scores(name: str, records: Sequence[Record]) -> Iterator[tuple[str, LabelScore]]:
    """The confusion of each field that the task asks for, or that its thoughts tell."""
    asked = task_for(name).labels
    for label in FIELDS:
        told = label in HEARD_FIELDS and any(record["labels"][label] for record in records)
        if label not in asked and not told:
            continue
        pairs = [(record["reference_labels"][label], record["labels"][label])
                 for record in records]  # fmt: skip
        confusion = Confusion.of(pairs)
        if confusion.total:
            low, high = interval([one.accuracy for one in map(_alone, pairs) if one.total])
            yield label, LabelScore(confusion, low, high)


def _alone(pair: tuple[str | None, str | None]) -> Confusion:
    return Confusion.of([pair])


def table(graded: Grade) -> str:
    """A grade for people."""
    lines = []
    for task in graded.tasks:
        failed = f", {task.failed} failed" if task.failed else ""
        lines.append(f"{task.task}: {task.answered} answered{failed}")
        lines += [f"  {score}" for score in task.words.values()]
        for name, score in task.labels.items():
            lines.append(f"  {name}  {score}")
            lines += [f"    {line}" for line in _confusion_lines(score.confusion)]
    if graded.unread:
        lines.append(f"{graded.unread} records could not be read")
    if graded.left_out:
        lines.append(f"{graded.left_out} records are left out by their list")
    return "\n".join(lines)


def _confusion_lines(confusion: Confusion) -> Iterator[str]:
    """Listed labels down, found ones across; nothing for more labels than a line can hold."""
    labels = confusion.labels
    if len(labels) > _WIDEST:
        return
    width = max(map(len, labels))
    yield " ".join([f"{'':<{width}}", *(f"{label:>{max(5, len(label))}}" for label in labels)])
    for label, row in zip(labels, confusion.counts, strict=True):
        if any(row):
            cells = (f"{count or '.':>{max(5, len(other))}}"
                     for count, other in zip(row, labels, strict=True))  # fmt: skip
            yield " ".join([f"{label:<{width}}", *cells])
