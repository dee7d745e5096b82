"""EChat-eval: the system answers spoken queries, a judge scores what it says and how it sounds.

Source: arXiv:2508.09600, section on EChat-eval: the judge sees the words of the query, its labels,
the reply text and the emotion heard in the reply. Several kinds of thought are asked in one run.

The items come in several forms, told apart by what is there:
- a folder with exchanges.jsonl: the tiny world's test split;
- jsonl whose objects have `turns` with roles, or `dialogue`: HumDial-like conversations, of which
  the last user turn is answered with the turns before it as history;
- any other jsonl: EChat-eval style, one query a line. The raw lists of training do too.

EChat-eval style fields (the first that is there counts):
    key | id | utt (else the name of the sound)     wav | audio | query_wav | path
    transcript | q_txt | question | query | user_text | text
    labels {emotion, age, gender, event}, or these fields themselves or in `extra` (q_emotion,
    caption)                           category | task_category | type: emotion age gender event
    multi; others keep their name; without one: `multi` where several cues are known.
HumDial-like: {"id", "category"?, "turns": [{"role": "user", "audio", "text", "emotion" ...},
{"role": "assistant", "text", "audio"?}, ...]}
Relative paths start at the folder of the jsonl. A line that cannot be used costs itself only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from statistics import mode
from typing import Any

from osum_echat import audio
from osum_echat.errors import DataError, OsumError
from osum_echat.evaluation import report, runner
from osum_echat.evaluation.judge import Exhibit, Judge, Judged, judge_of
from osum_echat.evaluation.reply_emotion import reply_emotions
from osum_echat.evaluation.report import CATEGORIES, Cell, Measure, Outcome, Table, mean, share
from osum_echat.evaluation.runner import Model, Prediction, Run, Suite, limited
from osum_echat.inference.reply import Reply
from osum_echat.metrics import Confusion
from osum_echat.records import Labels, Turn, Utterance, canonical_label
from osum_echat.token2wav.model import TOKENIZER_FILES, find_files, first_of
from osum_echat.token2wav.voice import SpeechTokenizer

WORLD_FILE = "exchanges.jsonl"
CUES = ("emotion", "age", "gender", "event")
MULTI, MULTI_TURN, IDENTITY = "multi", "multi-turn", "identity"
KEYS = ("key", "id", "utt")
SOUNDS = ("wav", "audio", "query_wav", "path")
TRANSCRIPTS = ("transcript", "q_txt", "question", "query", "user_text", "text")
CATEGORY = ("category", "task_category", "type")
LABELS = {"emotion": ("emotion", "q_emotion"), "age": ("age",), "gender": ("gender",),
          "event": ("event", "caption", "sound_event")}  # fmt: skip
NONE = "none"
TASKS = {"label": "s2s_think", "natural": "s2s_think", NONE: "s2s"}
TIMED = 4                               # replies of each kind of thought


@dataclass(frozen=True, slots=True)
class EChatItem:
    """One query. earlier: the turns before, whose reply speech is a sound file where known."""

    key: str
    category: str
    wav: Path
    transcript: str
    labels: Labels
    earlier: tuple[Turn, ...] = ()
    earlier_replies: tuple[Path | None, ...] = ()


def read(data: Path) -> tuple[list[EChatItem], dict[str, str]]:
    """The items of a folder or jsonl, and which lines are lost and why. Raises InputError."""
    if data.is_dir():
        return runner.read_objects(data / WORLD_FILE, partial(_of_world, data, count()))
    return runner.read_objects(data, partial(_item, data.parent))


def _of_world(
    root: Path, singles: Iterator[int], raw: Mapping[str, Any], where: str
) -> EChatItem:
    """An exchange of the tiny world: a dialogue, identity, or a single turn by category.

    singles: the numbers of the single turns, which go round the categories.
    """
    try:
        labels = Labels(**raw["labels"])
        category = {"dialogue": MULTI_TURN, "identity": IDENTITY}.get(raw["kind"])
        category = category or _world_category(labels, next(singles))
        turns = tuple(Turn(root / turn["wav"], turn["user_text"], turn["reply_text"])
                      for turn in raw["turns"])  # fmt: skip
        replies = tuple(root / turn["reply_wav"] for turn in raw["turns"])
        return EChatItem(raw["key"], category, root / raw["wav"], raw["user_text"], labels, turns,
                         replies)  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: no exchange of the tiny world ({error!r}); make the split "
                        "again") from error


def _world_category(labels: Labels, number: int) -> str:
    """Go round the categories; one whose cue is absent in this voice makes way for the next."""
    absent = {"emotion": labels.emotion == "NEUTRAL", "event": labels.event == "OTHER",
              MULTI: labels.emotion == "NEUTRAL" and labels.event == "OTHER"}  # fmt: skip
    turned = (CATEGORIES[(number + step) % len(CATEGORIES)] for step in range(len(CATEGORIES)))
    return next((one for one in turned if not absent.get(one)), "gender")


def _item(root: Path, raw: Mapping[str, Any], where: str) -> EChatItem:
    """A query; of a conversation the last user turn, with the exchanges before it as history."""
    turns = raw.get("turns") or raw.get("dialogue")
    turns = turns if isinstance(turns, list) else [{**raw, "role": "user"}]
    places = [place for place, turn in enumerate(turns) if _is_user(turn, where)]
    if not places:
        raise DataError(f"{where}: no turn with the role user; one is needed")
    earlier: list[Turn] = []
    replies: list[Path | None] = []
    for place in places[:-1]:
        asked, answer = turns[place : place + 2]
        if not _is_user(answer, where):
            said, answered = (_text(one, TRANSCRIPTS, where) for one in (asked, answer))
            earlier.append(Turn(root / _text(asked, SOUNDS, where), said, answered))
            sounds = _first(answer, SOUNDS)
            replies.append(root / _text(answer, SOUNDS, where) if sounds else None)
    question = _merged(turns[places[-1]])
    wav, labels = root / _text(question, SOUNDS, where), _labels(question, where)
    return EChatItem(
        key=_text({**raw, "": wav.stem}, (*KEYS, ""), where), wav=wav, labels=labels,
        category=_category(raw, labels, MULTI_TURN if earlier else None),
        transcript=_text(question, TRANSCRIPTS, where),
        earlier=tuple(earlier), earlier_replies=tuple(replies),
    )  # fmt: skip


def _is_user(turn: Any, where: str) -> bool:
    role = turn.get("role", turn.get("speaker")) if isinstance(turn, dict) else None
    if not isinstance(role, str):
        raise DataError(f"{where}: a turn without a role; need user or assistant")
    return role.lower() in ("user", "human")


def _first(raw: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of these names that has any."""
    return next((raw[name] for name in names if raw.get(name)), None)


def _text(raw: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if type(raw.get(name)) in (str, int) and raw[name] != "":
            return str(raw[name])
    raise DataError(f"{where}: none of {', '.join(names)}; one of them is needed")


def _merged(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The object with what its `extra` and `labels` hold."""
    merged = dict(raw)
    for name in ("extra", "labels"):
        if isinstance(raw.get(name), dict):
            merged = {**raw[name], **{key: value for key, value in merged.items() if value}}
    return merged


def _labels(raw: Mapping[str, Any], where: str) -> Labels:
    found = {cue: _first(raw, names) for cue, names in LABELS.items()}
    for cue, value in found.items():
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {cue} is {value!r}, need a string")
    return Labels(**{cue: canonical_label(value) for cue, value in found.items()})


def _category(raw: Mapping[str, Any], labels: Labels, unnamed: str | None = None) -> str:
    """The one that is named, else `unnamed`, else by the cues that are known."""
    if (named := _first(raw, CATEGORY)) is not None:
        return str(named).lower()
    known = [cue for cue in CUES if getattr(labels, cue)]
    return unnamed or (known[0] if len(known) == 1 else MULTI)


@dataclass(frozen=True, slots=True)
class Query:
    """An item asked in one of several ways, here kinds of thought."""

    item: EChatItem
    way: str
    is_timed: bool = False              # asked alone, so that its times are those of one user

    @property
    def key(self) -> str:
        return f"{self.item.key}/{self.way}"

    def sounds(self) -> Iterator[Path | str]:
        """What it is asked with: its own, and the sounds and words of the turns before."""
        yield self.item.wav
        yield from (one for turn in self.item.earlier for one in
                    (turn.audio, turn.text, turn.reply_text) if isinstance(one, Path | str))
        yield from filter(None, self.item.earlier_replies)


def build(run: Run) -> Suite[Query]:
    """The suite that the options ask for. Raises InputError or DataError for the data."""
    options, model = run.options, run.model
    every, lost = read(options.data)
    items = limited(every, options.limit, lambda one: one.category)
    kinds = tuple(options.thinking or _kinds(model)) if items else ()
    asked = [(item, kind) for item in items for kind in ((NONE,) if item.earlier else kinds)]
    timed = {id(one) for kind in (*kinds, NONE)
             for one in [one for one in asked if one[1] == kind][:TIMED]}  # fmt: skip
    queries = tuple(Query(*one, id(one) in timed) for one in asked)
    judge, languages = judge_of(options), [exhibit(item, "", None).language for item in every]
    spoken = mode(languages or ["en"])

    def score(found: Sequence[Prediction], out: Path) -> Outcome:
        made = runner.made(found)
        by_key = {query.key: query.item for query in queries}
        heard = reply_emotions(model, options, spoken, made, out)
        exhibits = [exhibit(by_key[one["key"]], one["text"], heard.get(one["key"]), one["key"])
                    for one in made]  # fmt: skip
        verdicts = judge(exhibits, out)
        return Summary(judge, verdicts, made, by_key, heard, out, options.players).outcome()

    return Suite(
        "EChat-eval", queries, partial(ask, run), score,
        kind=lambda query: None if query.is_timed else query.way, sounds=Query.sounds,
        lost=lost, shown=judge.settings() | {"reply emotion": options.reply_emotion},
    )  # fmt: skip


def _kinds(model: Model) -> tuple[str, ...]:
    """The kinds of thought that the model can think."""
    able = model.assistant.thinking
    return ("label", "natural") if able in ("both", "either") else (able,)


def ask(run: Run, queries: Sequence[Query], out: Path) -> list[Prediction | OsumError]:
    """The spoken replies to queries of one kind of thought."""
    thinking, voice = queries[0].way, run.model.assistant.voice
    place = voice.source if voice is not None else None
    if place is not None and not find_files(place).keys() & {*TOKENIZER_FILES}:
        place = None                    # nothing there hears codes

    def source(query: Query) -> Utterance:
        """The query with its history; earlier replies get their codes where they sound."""
        turns = []
        for turn, wav in zip(query.item.earlier, query.item.earlier_replies, strict=True):
            if wav is not None and place is not None:
                codes = tokenizer_of(place)(audio.load(wav), str(wav))
                turn = replace(turn, reply_speech=tuple(codes))
            turns.append(turn)
        return Utterance(query.item.key, TASKS[thinking], Turn(audio=query.item.wav),
                         history=tuple(turns))  # fmt: skip

    def kept(query: Query, reply: Reply) -> Prediction:
        return {
            "item": query.item.key, "category": query.item.category, "thinking": thinking,
            "timed": query.is_timed,
            "malformed": malformed(reply.thought, reply.labels, reply.text, thinking),
        } | runner.of_reply(reply, out, query.key)  # fmt: skip

    return run.ask(queries, source, kept, task=TASKS[thinking],
                   thinking=None if thinking == NONE else thinking)  # fmt: skip


@cache
def tokenizer_of(source: Path) -> SpeechTokenizer:
    """What hears speech codes for a token2wav model. Raises CheckpointError where it has none."""
    return SpeechTokenizer(first_of(find_files(source), TOKENIZER_FILES, source))


def malformed(thought: str | None, labels: Labels, text: str, thinking: str) -> bool:
    """Whether a reply lacks what its kind of thought promises."""
    if not text.strip() or thinking == NONE:
        return not text.strip()
    told = all(getattr(labels, cue) for cue in CUES)
    return not thought or (thinking == "label" and not told)


def exhibit(item: EChatItem, reply: str, emotion: str | None, key: str = "") -> Exhibit:
    """What the judge sees of one reply."""
    earlier = tuple((turn.text or "", turn.reply_text or "") for turn in item.earlier)
    return Exhibit(key, item.category, item.transcript, item.labels, reply, emotion, earlier)


@dataclass(frozen=True)
class Summary:
    """Scores by kind of thought and category, and the report made of them."""

    judge: Judge
    judged: Judged
    made: Sequence[Prediction]
    items: Mapping[str, EChatItem]
    heard: Mapping[str, str]
    out: Path
    players: int

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(one["thinking"] for one in self.made))

    @property
    def categories(self) -> list[str]:
        known = dict.fromkeys(one["category"] for one in self.made)
        ordered = [one for one in (*CATEGORIES, MULTI_TURN, IDENTITY) if one in known]
        return list(dict.fromkeys([*ordered, *known]))

    def _of(self, kind: str) -> list[Prediction]:
        return [one for one in self.made if one["thinking"] == kind]

    def _score(
        self, kind: str, category: str | None = None, dimension: str | None = None
    ) -> Measure:
        own = [self.judged.verdicts[one["key"]] for one in self._of(kind)
               if category in (None, one["category"]) and one["key"] in self.judged.verdicts]
        values = [one.scores[dimension] if dimension else one.overall for one in own]
        return mean([value for value in values if value is not None])

    def _dimension(self, kind: str, name: str) -> Measure:
        return self._score(kind, None, name)

    def _shape(self, kind: str) -> dict[str, Measure]:
        """How many replies lack something, and how long the thoughts are."""
        own = self._of(kind)
        return {"malformed": share([one["malformed"] for one in own]), "thought length": mean(
            [float(len(one["thought"])) for one in own if one["thought"]], "letters")}

    def _median_s(self, kind: str, name: str) -> Measure:
        """Of a time, over the replies that were asked alone."""
        times = [one["timings"][name] for one in self._of(kind) if one["timed"]]
        known = [time for time in times if time is not None]
        return Measure(report.percentile(known, 50), "s", len(known))

    def outcome(self) -> Outcome:
        measures = {f"{kind}/{category}": one for kind in self.kinds for category in self.categories
                    if (one := self._score(kind, category)).count}  # fmt: skip
        for kind in self.kinds:
            own = {"all": self._score(kind)} | {
                name: self._dimension(kind, name) for name in self.judge.rubric.names}
            measures |= {f"{kind}/{name}": one for name, one in (own | self._shape(kind)).items()}
        measures["judge failed"] = Measure(float(len(self.judged.failed)), "", len(self.made))
        timings = {f"{kind}/first audio p50": self._median_s(kind, "first_audio_s")
                   for kind in self.kinds}  # fmt: skip
        details = {
            "judge": self.judge.settings() | dict(self.judged.bill),
            "judge failed": dict(self.judged.failed),
            "verdicts": {key: {"overall": one.overall, **one.scores}
                         for key, one in self.judged.verdicts.items()},
            "reply emotions": self.heard,
        }  # fmt: skip
        return Outcome(measures, self._blocks(), timings, details)

    def _blocks(self) -> list[report.Block]:
        judge, bill, lost = self.judge, self.judged.bill, list(self.judged.failed.items())
        rows = {kind: [self._score(kind, name) for name in CATEGORIES] for kind in self.kinds}
        own = [(f"this model, {kind} thinking, by {judge.name}", row) for kind, row in rows.items()
               if any(one.count for one in row)]  # fmt: skip
        cost = "" if bill["cost"] is None else f", cost {bill['cost']:.4f}"
        return [
            f"Judge: {judge.name}; rubric {judge.rubric.version}. Scores from 0 to 100, with 95 % "
            "bootstrap intervals over items. Scores of different judges or test sets do not "
            "compare: the paper's rows stand here for orientation.",
            report.paper("echat_eval").beside(own),
            self._table("Every category", self.categories, self._score),
            self._table("Dimensions", judge.rubric.names, self._dimension),
            self._thoughts(),
            self._emotions(),
            f"Judge: {bill['calls']} answered requests, {bill['prompt_tokens']} + "
            f"{bill['completion_tokens']} tokens{cost}; {bill['unparsable']} answers could not be "
            f"read; "
            f"{len(lost)} replies without a verdict, left out of every mean.",
            *([Table("Replies without a verdict", ("reply", "why"), lost)] if lost else []),
            report.Players("Some replies", self._clips()),
        ]

    def _table(
        self, title: str, columns: Sequence[str], cell: Callable[[str, str], Measure]
    ) -> Table:
        rows: list[list[Cell]] = [[f"{kind} thinking", *(cell(kind, name) for name in columns)]
                                  for kind in self.kinds]  # fmt: skip
        return Table(title, ("", *columns), rows, whole=100)

    def _thoughts(self) -> Table:
        """The kinds of thought side by side."""
        rows: list[list[Cell]] = [
            [kind, self._score(kind), *self._shape(kind).values(),
             *(self._median_s(kind, name).value
               for name in ("first_text_s", "first_audio_s", "total_s"))]
            for kind in self.kinds
        ]  # fmt: skip
        columns = ("thinking", "score", "malformed", "thought, letters", "first text p50, s",
                   "first audio p50, s", "whole reply p50, s")  # fmt: skip
        return Table("Kinds of thought", columns, rows,
                     "Malformed: no closed thought, no answer, or a label missing from a label "
                     "thought. Turns with history are asked without thinking. Times are those of "
                     f"the first {TIMED} of each kind, asked alone; the rest share batches.")

    def _emotions(self) -> Table:
        """Which emotion the sound of replies carries, by that of the user."""
        pairs = [(self.items[one["key"]].labels.emotion or "not known", self.heard.get(one["key"]))
                 for one in self.made]  # fmt: skip
        title = "Emotion heard in the reply (across) by the user's (down)"
        return report.confusion_table(title, Confusion.of(pairs))

    def _clips(self) -> list[report.Clip]:
        sounding = [one for one in self.made if one["wav"]]
        return [clip_of(self.items[one["key"]], one, self.out, self._verdict_line(one))
                for one in limited(sounding, self.players, lambda one: one["category"])]

    def _verdict_line(self, one: Prediction) -> dict[str, str]:
        line = {"Reply emotion: ": self.heard.get(one["key"], "not told")}
        if verdict := self.judged.verdicts.get(one["key"]):
            scores = ", ".join(f"{name} {'-' if value is None else round(value)}"
                               for name, value in verdict.scores.items())  # fmt: skip
            line["Score: "] = f"{verdict.overall:.0f} ({scores})"
        return line


def clip_of(
    item: EChatItem, one: Prediction, out: Path, more: Mapping[str, str] | None = None
) -> report.Clip:
    """Players of a query and its reply."""
    cues = ", ".join(f"{cue} {value}" for cue in CUES if (value := getattr(item.labels, cue)))
    lines = {"User: ": f"{item.transcript} ({cues})"}
    if one["thought"]:
        lines["Thought: "] = one["thought"]
    lines["Reply: "] = one["text"]
    sounds = {"user": item.wav, "reply": out / one["wav"]}
    return report.Clip(f"{one['category']}: {one['key']}", sounds, {**lines, **(more or {})})
