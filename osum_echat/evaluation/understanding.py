"""What the model hears: words, emotion, gender, age, event and style, and how noise changes that.

Each entry of a data yaml is a set of its own in the report, so that recordings of people stand
apart from synthetic speech.
"""

import io
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat import audio
from osum_echat.data.sources import Dropped
from osum_echat.errors import DataError, InputError, OsumError
from osum_echat.evaluation import echat_items, paper, predictions
from osum_echat.evaluation.asking_together import ask
from osum_echat.evaluation.clerk import Asked
from osum_echat.evaluation.grading import RATES, Grade, LabelScore, grade
from osum_echat.evaluation.lists import UtteranceList
from osum_echat.evaluation.predictions import Prediction
from osum_echat.evaluation.results import (
    Bars,
    Block,
    Cell,
    Clip,
    Matrix,
    Measure,
    Outcome,
    Players,
    Table,
    Words,
)  # fmt: skip
from osum_echat.evaluation.runner import Model
from osum_echat.evaluation.start import limited
from osum_echat.inference.reply import Reply
from osum_echat.metrics import error_rate, language_of, normalised_pair, spelt
from osum_echat.records import Turn, Utterance
from osum_echat.tasks import task_for

CLEAN = "clean"
WHOLE = "understand"                    # words and four labels
FEWEST = 3                              # items that make a cell of the robustness table
MOST_CELLS = 24
VOICE = ("age", "gender", "emotion")


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


class Corpus:
    """The utterances of a list, a data yaml or a folder of the tiny world, read when asked for."""

    def __init__(self, data: Path) -> None:
        world = data / echat_items.WORLD_FILE
        self._world = [_of_world(item) for item in echat_items.read(data)
                       if not item.earlier] if world.exists() else None  # fmt: skip
        self._list = None if self._world is not None else UtteranceList(str(data))

    def sounds(self) -> list[Sound]:
        """Everything there is, by set."""
        if self._world is not None:
            return [Sound("tiny-world", number) for number in range(len(self._world))]
        assert self._list is not None
        names = [entry.name for entry, source in zip(
            self._list.entries, self._list.sources, strict=True) for _ in range(len(source))
        ]  # fmt: skip
        return [Sound(name, number) for number, name in enumerate(names)]

    def read(self, number: int) -> Utterance:
        """Raises DataError for a record that cannot be used."""
        if self._world is not None:
            return self._world[number]
        assert self._list is not None
        one = self._list.read(number)
        if isinstance(one, Dropped):
            raise DataError(f"{one.reason}: {one.detail}")
        return one


def _of_world(item: echat_items.EChatItem) -> Utterance:
    return Utterance(item.key, task_for(WHOLE).tag,
                     Turn(audio=item.wav, text=item.transcript), item.labels)  # fmt: skip


@dataclass(frozen=True)
class Understanding:
    """The suite."""

    model: Model
    corpus: Corpus
    sounds: tuple[Sound, ...]
    task: str | None
    seed: int
    greedy: bool
    players: int
    fixed: dict[str, Any]
    shown: dict[str, Any]
    name: str = "understanding"
    title: str = "Speech understanding"

    def items(self) -> Sequence[Sound]:
        return self.sounds

    def kind(self, item: Sound) -> str:
        """All together: a batch may hold several tasks."""
        return self.name

    def predict(self, items: Sequence[Sound], out: Path) -> list[Prediction | OsumError]:
        """What is heard in some utterances, and what should be."""
        asked: dict[str, Asked] = {}

        def source(item: Sound) -> Utterance:
            utterance = self.corpus.read(item.number)
            listed = task_for(utterance.task)
            task = task_for(self.task) if self.task else listed
            if not task.hears:
                raise InputError(
                    f"{utterance.key}: task {utterance.task} hears nothing; give --task"
                )
            utterance = replace(utterance, task=task.tag)
            asked[item.key] = Asked(item.number, utterance, task, listed)
            if item.snr_db is None:
                return utterance
            return with_noise(utterance, item.snr_db, predictions.seed_of(0, item.key))

        def kept(item: Sound, reply: Reply) -> Prediction:
            facts = asked[item.key].facts()
            sound = asked[item.key].utterance.user.audio if item.snr_db is None else None
            return {"utterance": facts.pop("key")} | predictions.of_reply(reply, out, item.key) | (
                facts | {"set": item.part, "noise": item.noise, "source": _playable(sound)}
            )

        return ask(self.model.assistant, items, self.seed, source, kept, greedy=self.greedy,
                   speak=False)  # fmt: skip

    def score(self, found: Sequence[Prediction], out: Path) -> Outcome:
        """Errors and right labels by set; the clean ones head the report."""
        made = [one | {"error": None} for one in predictions.made(found)]
        return Summary(made, self.players, out).outcome()


def _playable(sound: Path | bytes | None) -> str | None:
    """Where the report can play an utterance from: its own file; None for one inside a tar."""
    return str(sound.resolve()) if isinstance(sound, Path) else None


def with_noise(utterance: Utterance, snr_db: float, seed: int) -> Utterance:
    """The utterance with white noise `snr_db` below its mean power."""
    import soundfile

    assert utterance.user.audio is not None
    samples = audio.load(utterance.user.audio, segment_s=utterance.user.segment_s).numpy()
    power = float(np.square(samples, dtype=np.float64).mean())
    noise = np.random.default_rng(seed).normal(0.0, 1.0, len(samples))
    noisy = samples + noise * np.sqrt(power / 10 ** (snr_db / 10))
    file = io.BytesIO()
    soundfile.write(file, noisy.astype(np.float32), audio.SAMPLE_RATE_HZ, subtype="FLOAT",
                    format="WAV")  # fmt: skip
    return replace(utterance, user=replace(utterance.user, audio=file.getvalue(), segment_s=None))


class Summary:
    """Scores by set and noise, and the report made of them."""

    def __init__(self, made: Sequence[Prediction], players: int, out: Path) -> None:
        self.made, self.players, self.out = made, players, out
        self.grades: dict[str, Grade] = {}
        for part, noise in dict.fromkeys((one["set"], one["noise"]) for one in made):
            name = part if noise == CLEAN else f"{part}, {noise}"
            self.grades[name] = grade([one for one in made if (one["set"], one["noise"]) ==
                                       (part, noise)])  # fmt: skip

    def outcome(self) -> Outcome:
        measures = dict(self._measures())
        details = {name: one.to_json() for name, one in self.grades.items()}
        return Outcome(measures, self._blocks(), {}, {"sets": details})

    def _measures(self) -> Iterator[tuple[str, Measure]]:
        for name, graded in self.grades.items():
            for task in graded.tasks:
                where = f"{name}/{task.task}" if len(graded.tasks) > 1 else name
                for language, words in task.words.items():
                    yield f"{where}/{words.name} {language}", Measure(
                        100 * words.found.rate, "%", words.utterances, 100 * words.low,
                        100 * words.high)  # fmt: skip
                for field, score in task.labels.items():
                    yield f"{where}/{field}", _accuracy(score)
                    macro = Measure(100 * score.confusion.macro_f1, "%", score.confusion.total)
                    yield f"{where}/{field} macro-F1", macro

    def _blocks(self) -> list[Block]:
        measures = dict(self._measures())
        rows: list[list[Cell]] = [[name, one, str(one.count)] for name, one in measures.items()]
        blocks: list[Block] = [
            Words("Errors of words (WER, CER: lower is better) and right labels (higher is "
                  "better), in percent, with 95 % bootstrap intervals over utterances."),
            Table("Scores", ("set / task / what", "%", "items"), rows),
            paper.UNDERSTANDING,
        ]  # fmt: skip
        accuracies = {name: one for name, one in measures.items()
                      if not name.endswith("macro-F1") and "ER " not in name}  # fmt: skip
        fields = list(dict.fromkeys(name.rpartition("/")[2] for name in accuracies))
        places = list(dict.fromkeys(name.rpartition("/")[0] for name in accuracies))
        if accuracies:
            blocks.append(Bars("Right labels", fields, {
                place: [accuracies.get(f"{place}/{field}") for field in fields]
                for place in places}, "%"))  # fmt: skip
        for name, graded in self.grades.items():
            for task in graded.tasks:
                blocks += [Matrix(f"{name}: {field}", score.confusion)
                           for field, score in task.labels.items()]  # fmt: skip
        return [*blocks, *robustness(self.made), Players("Some utterances", self._clips())]

    def _clips(self) -> list[Clip]:
        playable = [one for one in self.made if one["source"] and Path(one["source"]).exists()]
        clips = []
        for one in limited(playable, self.players, lambda one: one["set"]):
            lines = {"Said: ": f"{one['reference_heard']} {_told(one['reference_labels'])}",
                     "Heard: ": one["text"]}  # fmt: skip
            clips.append(Clip(one["key"], {"utterance": Path(one["source"])}, lines))
        return clips


def _accuracy(score: LabelScore) -> Measure:
    return Measure(100 * score.confusion.accuracy, "%", score.confusion.total,
                   100 * score.low, 100 * score.high)  # fmt: skip


def _told(labels: dict[str, str | None]) -> str:
    return " ".join(f"<{value}>" for value in labels.values() if value)


@dataclass(frozen=True, slots=True)
class RobustnessCell:
    """One voice in one noise: right labels in percent, and errors of words where any were asked."""

    name: tuple[str, ...]
    right: float
    errors: float | None
    count: int


def robustness(made: Sequence[Prediction]) -> list[Block]:
    """Age x gender x emotion x noise, the worst cells first; nothing where voices are not known."""
    groups: dict[tuple[str, ...], list[Prediction]] = defaultdict(list)
    for one in made:
        voice = [spelt(one["reference_labels"].get(field)) for field in VOICE]
        if all(voice):
            groups[(*map(str, voice), one["noise"])].append(one)
    cells = [_cell(name, group) for name, group in groups.items() if len(group) >= FEWEST]
    if not cells:
        return []
    cells.sort(key=lambda cell: (cell.right, -(cell.errors or 0.0), cell.name))
    worst = cells[0]
    rows = [[*cell.name, cell.right, cell.errors, str(cell.count)] for cell in cells[:MOST_CELLS]]
    words = "" if worst.errors is None else f", {worst.errors:.1f} % word errors"
    told = Words(
        f"Worst of {len(cells)} cells with {FEWEST} or more items: {', '.join(worst.name)}: "
        f"{worst.right:.1f} % of labels right{words} ({worst.count} items)."
    )
    return [Table("Robustness: age, gender, emotion, noise; the worst first",
                  (*VOICE, "noise", "labels right, %", "word errors, %", "items"), rows),
            told, *_margins(made)]  # fmt: skip


def _margins(made: Sequence[Prediction]) -> list[Block]:
    """Each trait by itself against noise."""
    noises = list(dict.fromkeys(one["noise"] for one in made))
    rows: list[list[Cell]] = []
    for field in VOICE:
        values = {spelt(one["reference_labels"].get(field)) for one in made} - {None}
        for value, noise in product(sorted(map(str, values)), noises):
            group = [one for one in made if one["noise"] == noise
                     and spelt(one["reference_labels"].get(field)) == value]  # fmt: skip
            if group:
                cell = _cell((), group)
                rows.append([field, value, noise, cell.right, cell.errors, str(cell.count)])
    columns = ("trait", "value", "noise", "labels right, %", "word errors, %", "items")
    return [Table("Robustness, one trait at a time", columns, rows)]


def _cell(name: tuple[str, ...], group: Sequence[Prediction]) -> RobustnessCell:
    rights = [
        spelt(one["labels"].get(field)) == spelt(wanted)
        for one in group
        for field, wanted in one["reference_labels"].items()
        if wanted and field in task_for(one["task"]).labels
    ]
    pairs = [normalised_pair(one["reference_heard"], one["heard"]) for one in group
             if one["reference_heard"] and one["heard"] is not None]  # fmt: skip
    unit = RATES[language_of(" ".join(said for said, _ in pairs))][1]
    errors = 100 * error_rate(pairs, unit).rate if pairs else None
    return RobustnessCell(name, 100 * sum(rights) / max(1, len(rights)), errors, len(group))


def build(arguments: Namespace, model: Model) -> Understanding:
    """The suite that the options ask for. Raises InputError or DataError for the data."""
    corpus = Corpus(arguments.data)
    clean = limited(corpus.sounds(), arguments.limit, lambda one: one.part)
    snrs = (None, *dict.fromkeys(arguments.noise))
    sounds = tuple(replace(one, snr_db=snr) for snr in snrs for one in clean)
    if arguments.task:
        task_for(arguments.task)
    return Understanding(
        model, corpus, sounds, arguments.task, arguments.seed, arguments.greedy,
        arguments.players, {"task": arguments.task}, {"noise": list(arguments.noise)},
    )  # fmt: skip
