"""EChat-eval: the system answers spoken queries, a judge scores what it says and how it sounds.

Source: arXiv:2508.09600, section on EChat-eval: the judge sees the words of the query, its labels,
the reply text and the emotion heard in the reply. Several kinds of thought are asked in one run.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mode
from typing import Any

from osum_echat import audio
from osum_echat.errors import OsumError
from osum_echat.evaluation import echat_items, paper, predictions
from osum_echat.evaluation.asking_together import ask
from osum_echat.evaluation.echat_items import EChatItem
from osum_echat.evaluation.heard_emotions import HeardEmotions
from osum_echat.evaluation.judge import Judge, Judged
from osum_echat.evaluation.predictions import Prediction
from osum_echat.evaluation.results import (
    Bars,
    Block,
    Cell,
    Clip,
    Measure,
    Outcome,
    Players,
    Table,
    Words,
    mean,
    percentile,
    share,
)  # fmt: skip
from osum_echat.evaluation.rubric import Exhibit
from osum_echat.evaluation.runner import Model
from osum_echat.evaluation.start import judge_of, limited
from osum_echat.inference.reply import Reply
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.token2wav.voice import SpeechTokenizer

NONE = "none"
TASKS = {"label": "s2s_think", "natural": "s2s_think", NONE: "s2s"}
TIMED = 4                               # replies of each kind of thought
CODEC = Path("token2wav") / "speech_tokenizer.onnx"


@dataclass(frozen=True, slots=True)
class Query:
    """An item in one kind of thought."""

    item: EChatItem
    thinking: str
    is_timed: bool = False              # asked alone, so that its times are those of one user

    @property
    def key(self) -> str:
        return f"{self.item.key}/{self.thinking}"


@dataclass(frozen=True)
class EChatEval:
    """The suite."""

    model: Model
    asked: tuple[Query, ...]
    judge: Judge
    emotions: HeardEmotions
    seed: int
    greedy: bool
    players: int
    fixed: dict[str, Any]
    name: str = "echat_eval"
    title: str = "EChat-eval"

    @property
    def shown(self) -> dict[str, Any]:
        return self.judge.settings() | {"reply emotion": self.emotions.name}

    def items(self) -> Sequence[Query]:
        return self.asked

    def kind(self, item: Query) -> str | None:
        """Those of one kind of thought together; the first of each alone, for the clock."""
        return None if item.is_timed else item.thinking

    def predict(self, items: Sequence[Query], out: Path) -> list[Prediction | OsumError]:
        """The spoken replies to queries of one kind of thought."""
        thinking = items[0].thinking

        def kept(query: Query, reply: Reply) -> Prediction:
            return {
                "item": query.item.key, "category": query.item.category, "thinking": thinking,
                "timed": query.is_timed,
                "malformed": malformed(reply.thought, reply.labels, reply.text, thinking),
            } | predictions.of_reply(reply, out, query.key)  # fmt: skip

        return ask(self.model.assistant, items, self.seed, self._utterance, kept,
                   task=TASKS[thinking], thinking=None if thinking == NONE else thinking,
                   greedy=self.greedy)  # fmt: skip

    def _utterance(self, query: Query) -> Utterance:
        """The query with its history; earlier replies get their speech tokens where they sound."""
        item = query.item
        turns = []
        for turn, wav in zip(item.earlier, item.earlier_replies, strict=True):
            codec = self.model.assistant.directory / CODEC
            if wav is not None and codec.exists():
                codes = SpeechTokenizer(codec)(audio.load(wav))
                turn = replace(turn, reply_speech=tuple(codes))
            turns.append(turn)
        return Utterance(item.key, TASKS[query.thinking], Turn(audio=item.wav),
                         history=tuple(turns))  # fmt: skip

    def score(self, found: Sequence[Prediction], out: Path) -> Outcome:
        """Ask the judge and sum up by kind of thought and category."""
        made = predictions.made(found)
        items = {query.key: query.item for query in self.asked}
        heard = self.emotions.of(made, out)
        judged = self.judge([exhibit(items[one["key"]], one, heard.get(one["key"]))
                             for one in made], out)  # fmt: skip
        return Summary(self, made, items, heard, judged, out).outcome()


class Summary:
    """Scores by kind of thought and category, and the report made of them."""

    def __init__(
        self, suite: EChatEval, made: Sequence[Prediction], items: dict[str, EChatItem],
        heard: dict[str, str], judged: Judged, out: Path,
    ) -> None:  # fmt: skip
        self.suite, self.made, self.items, self.heard = suite, made, items, heard
        self.judged, self.out = judged, out
        self.kinds = list(dict.fromkeys(one["thinking"] for one in made))
        known = dict.fromkeys(one["category"] for one in made)
        order = (*paper.CATEGORIES, echat_items.MULTI_TURN, echat_items.IDENTITY)
        self.categories = [one for one in order if one in known]
        self.categories += [one for one in known if one not in order]
        self.overall: dict[tuple[str, str], Measure] = {}
        for kind in self.kinds:
            for category in self.categories:
                self.overall[kind, category] = self._score(kind, category, None)

    def _of(self, kind: str, category: str | None = None) -> list[Prediction]:
        return [one for one in self.made if one["thinking"] == kind
                and category in (None, one["category"])]  # fmt: skip

    def _score(self, kind: str, category: str | None, dimension: str | None) -> Measure:
        values = []
        for one in self._of(kind, category):
            verdict = self.judged.verdicts.get(one["key"])
            if verdict is None:
                continue
            value = verdict.scores[dimension] if dimension else verdict.overall
            if value is not None:
                values.append(value)
        return mean(values)

    def outcome(self) -> Outcome:
        measures = {f"{kind}/{category}": one for (kind, category), one in self.overall.items()
                    if one.count}  # fmt: skip
        timings: dict[str, Measure] = {}
        for kind in self.kinds:
            measures[f"{kind}/all"] = self._score(kind, None, None)
            for name in self.suite.judge.rubric.names:
                measures[f"{kind}/{name}"] = self._score(kind, None, name)
            measures[f"{kind}/malformed"] = share([one["malformed"] for one in self._of(kind)])
            measures[f"{kind}/thought length"] = mean(self._lengths(kind), "letters")
            firsts = self._times(kind, "first_audio_s")
            timings[f"{kind}/first audio p50"] = Measure(percentile(firsts, 50), "s", len(firsts))
        measures["judge failed"] = Measure(float(len(self.judged.failed)), "", len(self.made))
        details = {
            "judge": self.suite.judge.settings() | self.judged.bill.to_json(),
            "judge failed": dict(self.judged.failed),
            "verdicts": {key: {"overall": one.overall, **one.scores}
                         for key, one in self.judged.verdicts.items()},
            "reply emotions": self.heard,
        }  # fmt: skip
        return Outcome(measures, self._blocks(), timings, details)

    def _lengths(self, kind: str) -> list[float]:
        return [float(len(one["thought"])) for one in self._of(kind) if one["thought"]]

    def _times(self, kind: str, name: str) -> list[float]:
        times = [one["timings"][name] for one in self._of(kind) if one["timed"]]
        return [time for time in times if time is not None]

    def _blocks(self) -> list[Block]:
        judge, bill = self.suite.judge, self.judged.bill
        own = [(f"this model, {kind} thinking, by {judge.name}",
                [self.overall.get((kind, name)) for name in paper.CATEGORIES])
               for kind in self.kinds
               if any(self.overall[kind, name].count for name in paper.CATEGORIES
                      if name in self.categories)]  # fmt: skip
        blocks: list[Block] = [
            Words(f"Judge: {judge.name}; rubric {judge.rubric.version}. Scores from 0 to 100, with "
                  "95 % bootstrap intervals over items. Scores of different judges or test sets "
                  "do not compare: the paper's rows stand here for orientation."),
            paper.ECHAT_EVAL.beside(own),
            self._table("Every category", self.categories, lambda kind, name:
                        self.overall[kind, name]),
            Bars("Score by category", self.categories,
                 {kind: [self.overall[kind, name] for name in self.categories]
                  for kind in self.kinds}),
            self._table("Dimensions", judge.rubric.names, lambda kind, name:
                        self._score(kind, None, name)),
            self._thoughts(),
            self._emotions(),
        ]  # fmt: skip
        cost = "" if bill.cost is None else f", cost {bill.cost:.4f}"
        blocks.append(Words(
            f"Judge: {bill.calls} answered requests, {bill.prompt_tokens} + "
            f"{bill.completion_tokens} tokens{cost}; {bill.unparsable} answers could not be read; "
            f"{len(self.judged.failed)} replies without a verdict, left out of every mean."
        ))  # fmt: skip
        if self.judged.failed:
            blocks.append(Table("Replies without a verdict", ("reply", "why"),
                                list(self.judged.failed.items())))  # fmt: skip
        return [*blocks, Players("Some replies", self._clips())]

    def _table(
        self, title: str, columns: Sequence[str], cell: Callable[[str, str], Measure]
    ) -> Table:
        rows: list[list[Cell]] = []
        for kind in self.kinds:
            rows.append([f"{kind} thinking", *(cell(kind, name) for name in columns)])
        return Table(title, ("", *columns), rows)

    def _thoughts(self) -> Table:
        """The kinds of thought side by side."""
        rows: list[list[Cell]] = []
        for kind in self.kinds:
            times = [percentile(self._times(kind, name), 50)
                     for name in ("first_text_s", "first_audio_s", "total_s")]  # fmt: skip
            rows.append([
                kind, self._score(kind, None, None), mean(self._lengths(kind)),
                share([one["malformed"] for one in self._of(kind)]), *times,
            ])  # fmt: skip
        columns = ("thinking", "score", "thought, letters", "malformed", "first text p50, s",
                   "first audio p50, s", "whole reply p50, s")  # fmt: skip
        return Table("Kinds of thought", columns, rows,
                     "Malformed: no closed thought, no answer, or a label missing from a label "
                     "thought. Turns with history are asked without thinking. Times are those of "
                     f"the first {TIMED} of each kind, asked alone; the rest share batches.")

    def _emotions(self) -> Table:
        """Which emotion the sound of replies carries, by that of the user."""
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for one in self.made:
            user = self.items[one["key"]].labels.emotion or "not known"
            counts[user][self.heard.get(one["key"], "not told")] += 1
        columns = sorted({name for row in counts.values() for name in row})
        rows = [[user, *(str(counts[user][name] or "-") for name in columns)]
                for user in sorted(counts)]  # fmt: skip
        return Table("Emotion heard in the reply (across) by the user's (down)",
                     ("user", *columns), rows, f"Heard by {self.suite.emotions.name}.")  # fmt: skip

    def _clips(self) -> list[Clip]:
        sounding = [one for one in self.made if one["wav"]]
        return [clip_of(self.items[one["key"]], one, self.out, self._verdict_line(one))
                for one in limited(sounding, self.suite.players, lambda one: one["category"])]

    def _verdict_line(self, one: Prediction) -> dict[str, str]:
        verdict = self.judged.verdicts.get(one["key"])
        line = {"Reply emotion: ": self.heard.get(one["key"], "not told")}
        if verdict:
            scores = ", ".join(f"{name} {'-' if value is None else round(value)}"
                               for name, value in verdict.scores.items())  # fmt: skip
            line["Score: "] = f"{verdict.overall:.0f} ({scores})"
        return line


def clip_of(
    item: EChatItem, one: Prediction, out: Path, more: dict[str, str] | None = None
) -> Clip:
    """Players of a query and its reply."""
    cues = ", ".join(f"{name} {value}" for name, value in _cues(item.labels).items())
    lines = {"User: ": f"{item.transcript} ({cues})"}
    if one["thought"]:
        lines["Thought: "] = one["thought"]
    lines["Reply: "] = one["text"]
    return Clip(f"{one['category']}: {one['key']}",
                {"user": item.wav, "reply": out / one["wav"]}, lines | (more or {}))  # fmt: skip


def _cues(labels: Labels) -> dict[str, str]:
    return {name: value for name in echat_items.CUES if (value := getattr(labels, name))}


def exhibit(item: EChatItem, one: Prediction, emotion: str | None) -> Exhibit:
    """What the judge sees of one reply."""
    earlier = tuple((turn.text or "", turn.reply_text or "") for turn in item.earlier)
    return Exhibit(one["key"], item.category, item.transcript, item.labels, one["text"],
                   emotion, earlier)  # fmt: skip


def malformed(thought: str | None, labels: Any, text: str, thinking: str) -> bool:
    """Whether a reply lacks what its kind of thought promises."""
    if not text.strip():
        return True
    if thinking == NONE:
        return False
    missing = thinking == "label" and not all(
        getattr(labels, cue) for cue in echat_items.CUES
    )
    return not thought or missing


def build(arguments: Namespace, model: Model) -> EChatEval:
    """The suite that the options ask for. Raises InputError or DataError for the data."""
    items = limited(echat_items.read(arguments.data), arguments.limit, lambda one: one.category)
    kinds = tuple(arguments.thinking or _kinds(model))
    asked = [(item, kind) for item in items for kind in ((NONE,) if item.earlier else kinds)]
    timed = {id(one) for kind in (*kinds, NONE)
             for one in [one for one in asked if one[1] == kind][:TIMED]}  # fmt: skip
    queries = tuple(Query(*one, id(one) in timed) for one in asked)
    language = mode(_exhibited(item).language for item in items)
    return EChatEval(
        model, queries, judge_of(arguments),
        HeardEmotions(model, arguments.reply_emotion, language, arguments.neutral_style),
        arguments.seed, arguments.greedy, arguments.players, {},
    )  # fmt: skip


def _kinds(model: Model) -> tuple[str, ...]:
    """The kinds of thought that the model can think."""
    able = model.assistant.thinking
    return ("label", "natural") if able in ("both", "either") else (able,)


def _exhibited(item: EChatItem) -> Exhibit:
    return Exhibit(item.key, item.category, item.transcript, item.labels, "", None)
