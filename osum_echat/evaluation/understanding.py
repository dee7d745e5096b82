"""What the model hears: words, emotion, gender, age, event and style, and how noise changes that.

Each entry of a data yaml is a set of its own in the report, so that recordings of people stand
apart from synthetic speech. The grading of results serves batch.py, too.
"""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat import audio, metrics
from osum_echat.data.manifest import Entry, open_source, read_manifest
from osum_echat.data.sources import Dropped, TarSource
from osum_echat.errors import DataError, InputError, OsumError
from osum_echat.evaluation import echat_eval, report, runner
from osum_echat.evaluation.report import Measure, Outcome, Table, percent
from osum_echat.evaluation.runner import Prediction, Run, Suite, limited, of_reply
from osum_echat.files import sha256_of
from osum_echat.inference.reply import Reply
from osum_echat.metrics import Confusion, ErrorRate, interval, normalised_pair, spelt
from osum_echat.records import LIST_KEYS, Turn, Utterance
from osum_echat.tasks import UNDERSTAND, Task, task_for
from osum_echat.thinking import read_labels, transcript

CLEAN, VOICE = "clean", ("age", "gender", "emotion")
FEWEST = 3                              # items that make a cell of the robustness table
MOST_CELLS = 24
# How the words of a language are counted, and what the rate is called.
RATES = {"english": ("WER", "word"), "chinese": ("CER", "mixed")}
OWN_FIELD = "style"                     # of the reply itself, not of what was heard
Record = dict[str, Any]


class EChatSource:
    """What echat_eval reads, each query asked for all that it holds."""

    def __init__(self, data: Path) -> None:
        self.name = "tiny-world" if data.is_dir() else data.stem
        items, self.lost = echat_eval.read(data)
        tag = task_for(UNDERSTAND).tag
        self._all = [Utterance(one.key, tag, Turn(one.wav, one.transcript), one.labels)
                     for one in items if not one.earlier]  # fmt: skip

    def __len__(self) -> int:
        return len(self._all)

    def read(self, unit: int) -> Utterance:
        return self._all[unit]


def _fits_echat(data: Path) -> bool:
    """Whether this is a folder of the tiny world, or a jsonl without the tasks of training."""
    if data.suffix != ".jsonl" or not data.is_file():
        return (data / echat_eval.WORLD_FILE).exists()
    with data.open(encoding="utf-8", errors="replace") as file:
        first = next(filter(str.strip, file), "")
    return '"task"' not in first and '"txt"' not in first


class UtteranceList:
    """The utterances of a path in order, each by its number; none is read before it is asked for.

    place: whatever `data.manifest.open_source` or echat_eval reads, or a YAML of names with `path`
    and `weight`; here each entry is read once, and weight 0 leaves it out. limit: only so many,
    from the first. Raises DataError, ConfigError for what is not there.
    """

    def __init__(self, place: str, limit: int | None = None) -> None:
        self.entries = [Entry(Path(place).stem, place)]
        self.lost: Mapping[str, str] = {}
        if place.endswith((".yaml", ".yml")):
            self.entries = [entry for entry in read_manifest(place) if entry.weight > 0]
        if not self.entries:
            raise InputError(f"--data {place}: every entry has weight 0; nothing is left to answer")
        if _fits_echat(Path(place)):
            source = EChatSource(Path(place))
            self.sources: list[Any] = [source]
            self.lost = source.lost
        else:
            self.sources = [open_source(entry.name, entry.path) for entry in self.entries]
        self._ends = np.cumsum([len(source) for source in self.sources])
        self._length = min(int(self._ends[-1]), limit or int(self._ends[-1]))

    def __len__(self) -> int:
        return self._length

    def _place(self, index: int) -> tuple[Any, int]:
        """The source, and the number within it."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[place], index - (int(self._ends[place - 1]) if place else 0)

    def part(self, index: int) -> str:
        """The name of the source."""
        return str(self._place(index)[0].name)

    def read(self, index: int) -> Utterance | Dropped:
        """One utterance, or why there is none."""
        source, unit = self._place(index)
        found: Utterance | Dropped = source.read(unit)
        return found

    def files(self, index: int) -> list[Path]:
        """The sound files of an utterance; none for one of a tar."""
        source, unit = self._place(index)
        one = None if isinstance(source, TarSource) else source.read(unit)
        turns = (*one.history, one.user) if isinstance(one, Utterance) else ()
        return [turn.audio for turn in turns if isinstance(turn.audio, Path)]

    def tars(self) -> str | None:
        """Changes with the tars that hold sounds."""
        return runner.stamp(Path(shard.tar) for source in self.sources
                            if isinstance(source, TarSource) for shard in source.shards)

    def identity(self) -> list[dict[str, Any]]:
        """What tells this list from another: names, lengths, and digests of the list files.

        Folders have no digest, nor have tars: they are told by how many utterances they hold.
        """
        found = []
        for entry, source in zip(self.entries, self.sources, strict=True):
            path = Path(entry.path)
            is_list = path.is_file() and path.suffix not in (".tar", ".gz", ".tgz")
            digest = sha256_of(path)[:16] if is_list else None
            found.append({"name": entry.name, "utterances": len(source), "sha256": digest})
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """An utterance by its number in the list, with the task that it is asked."""

    index: int
    utterance: Utterance
    task: Task
    listed: Task | None  # the task that its own text belongs to; None: no task that is known
    sounds: str | None  # stamp of its sound files; None: it has none

    @classmethod
    def of(cls, index: int, utterance: Utterance, task: str | None, sounds: str | None) -> "Asked":
        """task: in place of its own. Raises InputError where none of both is known."""
        try:
            listed = task_for(utterance.task)
        except InputError:
            if task is None:
                raise
            listed = None
        asked = task_for(task or utterance.task)
        return cls(index, replace(utterance, task=asked.tag), asked, listed, sounds)

    def facts(self) -> Record:
        """What is known of it before it is answered."""
        user = self.utterance.user
        text = user.reply_text
        labels, heard = asdict(self.utterance.labels), user.text
        if self.listed is not None and self.listed.name == UNDERSTAND and text:
            told = asdict(read_labels(text, self.listed.labels))
            labels |= {name: label for name, label in told.items() if label}
            heard = transcript(text) if self.listed.transcript else heard
        return {
            "index": self.index, "key": self.utterance.key, "task": self.task.tag,
            "reference": text, "reference_heard": heard, "reference_labels": labels,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class WordScore:
    """Words heard against words said, in one language. low, high: 95 % bootstrap interval."""

    name: str  # WER or CER
    found: ErrorRate
    low: float
    high: float
    utterances: int

    @classmethod
    def of(cls, language: str, pairs: Sequence[tuple[str, str]]) -> "WordScore":
        """pairs: (said, heard), normalised."""
        name, unit = RATES[language]
        low, high = interval(*metrics.errors_of_each(pairs, unit))
        return cls(name, metrics.error_rate(pairs, unit), low, high, len(pairs))

    @property
    def measure(self) -> Measure:
        return percent(self.found.rate, self.utterances, self.low, self.high)

    def __str__(self) -> str:
        found = self.found
        return (
            f"{self.name}  {self.measure}  {found.substitutions} wrong, {found.deletions} missing, "
            f"{found.insertions} too many of {found.total}; {self.utterances} utterances"
        )


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Labels found against labels listed. low, high: 95 % bootstrap interval of the accuracy."""

    accuracy: float
    low: float
    high: float
    macro_f1: float
    utterances: int
    labels: tuple[str, ...]             # of the confusion, and its counts
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[str | None, str | None]]) -> "LabelScore | None":
        """pairs: (listed, found); None where none is listed."""
        whole, each = Confusion.of(pairs), [Confusion.of([pair]) for pair in pairs]
        if not whole.total:
            return None
        low, high = interval([one.accuracy for one in each if one.total])
        return cls(whole.accuracy, low, high, whole.macro_f1, whole.total, **asdict(whole))

    @property
    def confusion(self) -> Confusion:
        return Confusion(self.labels, self.counts)

    @property
    def measure(self) -> Measure:
        """The accuracy."""
        return percent(self.accuracy, self.utterances, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.measure} right, macro-F1 {self.macro_f1:.3f}; {self.utterances} utterances"


@dataclass(frozen=True, slots=True)
class TaskGrade:
    """One task of a list. words: by language; labels: by field."""

    answered: int
    failed: int
    words: dict[str, WordScore]
    labels: dict[str, LabelScore]


@dataclass(frozen=True, slots=True)
class Grade:
    """A list by task. unread: records that could not be read, and so belong to no task."""

    tasks: dict[str, TaskGrade]
    unread: int
    left_out: int

    @property
    def answered(self) -> int:
        return sum(task.answered for task in self.tasks.values())

    @property
    def failed(self) -> int:
        return sum(task.failed for task in self.tasks.values()) + self.unread

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return {"answered": self.answered, "failed": self.failed, **asdict(self)}


def grade(records: Iterable[Record], language: str = "auto") -> Grade:
    """Score results. language: of the texts, auto: each by its reference.

    Utterances that failed are counted, and are in no other figure.
    """
    by_task: dict[str, list[Record]] = defaultdict(list)
    unread = left_out = 0
    for record in records:
        if "left_out" in record:
            left_out += 1
        elif record["task"] is None:
            unread += 1
        else:
            by_task[record["task"]].append(record)
    tasks = {}
    for name, own in sorted(by_task.items()):
        answered = [record for record in own if record["error"] is None]
        tasks[name] = TaskGrade(
            len(answered), len(own) - len(answered),
            dict(_word_scores(name, answered, language)), dict(_label_scores(name, answered)),
        )  # fmt: skip
    return Grade(tasks, unread, left_out)


def _word_scores(
    task: str, records: Sequence[Record], language: str
) -> Iterator[tuple[str, WordScore]]:
    """The error rate of each language that the references are in."""
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        heard = transcript(record["text"]) if task_for(task).transcript else record["heard"]
        said = record["reference_heard"]
        if heard is not None and said:
            own = metrics.language_of(said) if language == "auto" else language
            pairs[own].append(normalised_pair(said, heard, own))
    for own, found in sorted(pairs.items()):
        yield own, WordScore.of(own, found)


def _label_scores(task: str, records: Sequence[Record]) -> Iterator[tuple[str, LabelScore]]:
    """Of each field that the task asks for, or that its thoughts tell."""
    for label in LIST_KEYS if records else ():     # a task that is unknown has none
        told = label != OWN_FIELD and any(record["labels"][label] for record in records)
        if label in task_for(task).labels or told:
            score = LabelScore.of([(record["reference_labels"][label], record["labels"][label])
                                   for record in records])  # fmt: skip
            if score is not None:
                yield label, score


@dataclass(frozen=True, slots=True)
class Sound:
    """One utterance of a list, with noise at `snr_db` or without."""

    part: str                           # the set that it belongs to
    number: int
    snr_db: float | None = None

    @property
    def noise(self) -> str:
        return CLEAN if self.snr_db is None else f"{self.snr_db:g} dB"

    @property
    def key(self) -> str:
        return f"{self.part}/{self.number:06d}/{self.noise}"


def ask(
    run: Run, corpus: UtteranceList, items: Sequence[Sound], out: Path
) -> list[Prediction | OsumError]:
    """What is heard in some utterances, and what should be."""
    asked: dict[str, Asked] = {}

    def source(item: Sound) -> Utterance:
        utterance = corpus.read(item.number)
        if isinstance(utterance, Dropped):
            raise DataError(f"{utterance.reason}: {utterance.detail}")
        one = asked[item.key] = Asked.of(item.number, utterance, run.options.task, None)
        if not one.task.hears:
            raise InputError(f"{utterance.key}: task {utterance.task} hears nothing; give --task")
        if item.snr_db is None:
            return one.utterance
        return with_noise(one.utterance, item.snr_db, runner.seed_of(0, item.key))

    def kept(item: Sound, reply: Reply) -> Prediction:
        facts = asked[item.key].facts()
        sound = asked[item.key].utterance.user.audio if item.snr_db is None else None
        played = str(sound.resolve()) if isinstance(sound, Path) else None
        return {"utterance": facts.pop("key")} | of_reply(reply, out, item.key) | (
            facts | {"set": item.part, "noise": item.noise, "source": played}
        )

    return run.ask(items, source, kept, speak=False)


def with_noise(utterance: Utterance, snr_db: float, seed: int) -> Utterance:
    """The utterance with white noise `snr_db` below its mean power."""
    import soundfile

    assert utterance.user.audio is not None
    samples = audio.load(utterance.user.audio, segment_s=utterance.user.segment_s).numpy()
    power = float(np.square(samples, dtype=np.float64).mean())
    noise = np.random.default_rng(seed).normal(0.0, 1.0, len(samples))
    noisy = (samples + noise * np.sqrt(power / 10 ** (snr_db / 10))).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noisy, audio.SAMPLE_RATE_HZ, subtype="FLOAT", format="WAV")
    return replace(utterance, user=replace(utterance.user, audio=file.getvalue(), segment_s=None))


def score(players: int, found: Sequence[Prediction], out: Path) -> Outcome:
    """Errors and right labels by set; the clean ones head the report."""
    made = [one | {"error": None} for one in runner.made(found)]
    sets: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for one in made:
        sets[one["set"], one["noise"]].append(one)
    grades = {part if noise == CLEAN else f"{part}, {noise}": grade(own)
              for (part, noise), own in sets.items()}  # fmt: skip
    measures = dict(_measures(grades))
    blocks: list[report.Block] = [
        "Errors of words (WER, CER: lower is better) and right labels (higher is better), in "
        "percent, with 95 % bootstrap intervals over utterances.",
        report.scores(measures, ("set / task / what", "%", "items")), report.paper("understanding"),
    ]  # fmt: skip
    blocks += [report.confusion_table(f"{name}: {label}", one.confusion)
               for name, graded in grades.items() for task in graded.tasks.values()
               for label, one in task.labels.items()]  # fmt: skip
    blocks += [*robustness(made), report.Players("Some utterances", [*_clips(made, players)])]
    told = {name: one.to_json() for name, one in grades.items()}
    return Outcome(measures, blocks, details={"sets": told})


def _measures(grades: Mapping[str, Grade]) -> Iterator[tuple[str, Measure]]:
    for name, graded in grades.items():
        for tag, task in graded.tasks.items():
            where = f"{name}/{tag}" if len(graded.tasks) > 1 else name
            for language, words in task.words.items():
                yield f"{where}/{words.name} {language}", words.measure
            for label, one in task.labels.items():
                yield f"{where}/{label}", one.measure
                yield f"{where}/{label} macro-F1", percent(one.macro_f1, one.utterances)


def _clips(made: Sequence[Prediction], players: int) -> Iterator[report.Clip]:
    playable = [one for one in made if one["source"] and Path(one["source"]).exists()]
    for one in limited(playable, players, lambda one: one["set"]):
        labels = " ".join(f"<{label}>" for label in one["reference_labels"].values() if label)
        lines = {"Said: ": f"{one['reference_heard']} {labels}", "Heard: ": one["text"]}
        yield report.Clip(one["key"], {"utterance": Path(one["source"])}, lines)


def _cell(group: Sequence[Prediction]) -> tuple[float | None, float | None, str]:
    """Right labels and errors of words in percent, None where none were asked; how many items."""
    rights = [
        spelt(one["labels"].get(label)) == spelt(wanted)
        for one in group
        for label, wanted in one["reference_labels"].items()
        if wanted and label in task_for(one["task"]).labels
    ]
    pairs = [normalised_pair(one["reference_heard"], one["heard"]) for one in group
             if one["reference_heard"] and one["heard"] is not None]  # fmt: skip
    unit = RATES[metrics.language_of(" ".join(said for said, _ in pairs))][1]
    errors = 100 * metrics.error_rate(pairs, unit).rate if pairs else None
    return 100 * sum(rights) / len(rights) if rights else None, errors, str(len(group))


def robustness(made: Sequence[Prediction]) -> list[report.Block]:
    """Age x gender x emotion x noise, the worst cells first, then each trait by itself.

    Nothing where voices are not known.
    """
    cells = [(name, *_cell(own)) for name, own in _by_voice(made, VOICE) if len(own) >= FEWEST]
    found = [cell for cell in cells if cell[1:3] != (None, None)]
    if not found:
        return []
    found.sort(key=lambda cell: (101 if cell[1] is None else cell[1], -(cell[2] or 0.0), cell[0]))
    name, right, errors, count = found[0]
    worst = ", ".join(f"{figure:.1f} % {of}" for figure, of in (
        (right, "of labels right"), (errors, "word errors")) if figure is not None)
    traits = [(label, *name, *_cell(own)) for label in VOICE
              for name, own in sorted(_by_voice(made, (label,)), key=itemgetter(0))]
    figures = ("noise", "labels right, %", "word errors, %", "items")
    return [
        Table("Robustness: age, gender, emotion, noise; the worst first", (*VOICE, *figures),
              [(*name, *cells) for name, *cells in found[:MOST_CELLS]]),
        f"Worst of {len(found)} cells with {FEWEST} or more items: {', '.join(name)}: {worst} "
        f"({count} items).",
        Table("Robustness, one trait at a time", ("trait", "value", *figures), traits),
    ]  # fmt: skip


def _by_voice(
    made: Sequence[Prediction], traits: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], list[Prediction]]]:
    """Predictions by these labels of the voice, where all are known, and by noise."""
    groups: dict[tuple[str, ...], list[Prediction]] = defaultdict(list)
    for one in made:
        voice = [spelt(one["reference_labels"].get(label)) or "" for label in traits]
        if all(voice):
            groups[(*voice, one["noise"])].append(one)
    return groups.items()


def build(run: Run) -> Suite[Sound]:
    """The suite that the options ask for. Raises InputError or DataError for the data."""
    options = run.options
    corpus = UtteranceList(str(options.data))
    every = [Sound(corpus.part(number), number) for number in range(len(corpus))]
    clean = limited(every, options.limit, lambda one: one.part)
    snrs = (None, *dict.fromkeys(options.noise))
    items = [replace(one, snr_db=snr) for snr in snrs for one in clean]
    if options.task:
        task_for(options.task)
    return Suite(
        "Speech understanding", items, partial(ask, run, corpus), partial(score, options.players),
        sounds=lambda one: corpus.files(one.number), lost=corpus.lost,
        fixed={"task": options.task, "lists": corpus.identity(), "tars": corpus.tars()},
        shown={"noise": list(options.noise)},
    )  # fmt: skip
