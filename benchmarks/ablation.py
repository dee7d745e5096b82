"""The paper's ablation at tiny scale: what understanding first and thinking are worth.

    python -m benchmarks.ablation --out exp/ablation --start exp/tiny/stage0b/final

Trains the four variants of the paper's Table 1 (all of it; without the understanding stage; without
dual thinking; without both), and all of it with 30 and 10 % of the dialogues, on a part of the tiny
world (--situations), and counts right replies to unseen voices. Replies are written: the speech
part is left out at this scale, as it has no say in what is answered.

Every variant starts from the same LLM, trained on text alone, and a stock Whisper encoder, and
makes the same number of updates (--steps). What has no understanding stage makes more updates on
dialogues instead: a variant must not lose for being trained less. Such an update costs more time
than one of the understanding stage, so this favours the variants without it. The dialogue stage
is the same for all, but for the thought; it learns from no transcript or label outside of it.
A run that was stopped goes on when started again; what is finished is not done again.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from common_utils.tiny_world.world import load_world, normalise
from osum_echat import cli, logs
from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation import echat_eval, report
from osum_echat.evaluation.echat_eval import WORLD_FILE
from osum_echat.evaluation.report import CATEGORIES, Block, Cell, Measure, Table, share
from osum_echat.evaluation.runner import read_objects, settle, versions
from osum_echat.files import write_json, write_jsonl
from osum_echat.inference.assistant import EChat
from osum_echat.metrics import paired_interval
from osum_echat.paths import HOUSE
from osum_echat.records import Turn, Utterance
from osum_echat.training import experiment, trainer

Exchange = dict[str, Any]
UNDERSTANDING, THINKING, PLAIN = "understand", "s2t_think", "s2t"
LOG = logs.logger(__name__)
UNDERSTANDING_SHARE = 0.7  # of the updates of a variant that has the stage
ASKED_AT_ONCE = 16
CONFIGS = HOUSE / "conf" / "tiny"


@dataclass(frozen=True, slots=True)
class Variant:
    """One row. printed: the paper's row, None where it has none."""

    name: str
    title: str
    printed: str | None
    understands: bool = True
    thinks: bool = True
    dialogues: float = 1.0  # share of them that it learns from


VARIANTS = (
    Variant("full", "all of it", "OSUM-EChat (paper)"),
    Variant("no_understanding", "without the understanding stage",
            "without understanding-driven training", understands=False),
    Variant("no_thinking", "without dual thinking", "without dual thinking", thinks=False),
    Variant("neither", "without both", "without both", understands=False, thinks=False),
    Variant("full_30", "all of it, 30 % of the dialogues", None, dialogues=0.3),
    Variant("full_10", "all of it, 10 % of the dialogues", None, dialogues=0.1),
)  # fmt: skip
NAMES = tuple(one.name for one in VARIANTS)


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
    """The situations of the world that have the most test questions, with every voice: training
    lists and questions. Only single turns count: dialogues and identity test other things."""

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


class Ablation:
    """The trainings and the questions of one output directory."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self.start, self.whisper = arguments.start, arguments.whisper
        self.steps: int = arguments.steps
        self.seed: int = arguments.seed
        self.part = Part(arguments.train, arguments.test, arguments.situations)
        for place in (self.start, self.whisper):
            if not place.exists():
                raise InputError(f"{place}: not there; see --start and --whisper of --help")
        self.settings = {
            "start": str(self.start), "whisper": str(self.whisper), "train": str(arguments.train),
            "test": [str(one) for one in arguments.test], "situations": arguments.situations,
            "steps": self.steps, "seed": self.seed,
        }  # fmt: skip
        settle(self.out, self.settings, "choose another --out")

    @property
    def first_steps(self) -> int:
        """Updates of the understanding stage."""
        return round(UNDERSTANDING_SHARE * self.steps)

    def answers(self, variant: Variant) -> list[dict[str, Any]]:
        """Train a variant and ask it; both only where that is still to be done."""
        place = self.out / variant.name / "answers.json"
        if not place.exists():
            model = self._train(variant)
            write_json(place, self._ask(variant, model))
        found: list[dict[str, Any]] = json.loads(place.read_bytes())
        return found

    def _train(self, variant: Variant) -> Path:
        """The trained model's directory."""
        steps, start = self.steps, [f"init={self.start}", f"init_encoder={self.whisper}"]
        if variant.understands:
            first = self.out / "understanding"
            self._run(first, self.first_steps, "stage1_understanding.yaml",
                      [*start, *self._lists(UNDERSTANDING, 1.0)])  # fmt: skip
            steps, start = steps - self.first_steps, [f"init={first / 'final'}"]
        kind = THINKING if variant.thinks else PLAIN
        place = self.out / variant.name
        self._run(place, steps, "stage3_empathy.yaml", [
            *start, *self._lists(kind, variant.dialogues), "stage.rates={}", "engine.ctc_weight=0",
            "prepare.ctc_targets=false",
        ])  # fmt: skip
        return place / "final"

    def _lists(self, name: str, dialogues: float) -> list[str]:
        place = self.out / "lists" / f"{name}-{round(100 * dialogues)}.list"
        count = self.part.write_list(name, dialogues, place)
        LOG.info("%s: %d lines", place, count)
        lists = json.dumps({name: {"path": str(place)}})
        return [f"data.lists={lists}", "data.held_out=null"]

    def _run(self, output: Path, steps: int, recipe: str, overrides: Sequence[str]) -> None:
        """One training to its end. Raises KeyboardInterrupt where a signal ended it."""
        if (output / trainer.FINAL_FOLDER / "model.safetensors").exists():
            return
        logs.out(f"{output.name}: {steps} updates")
        started, cpu_s = time.monotonic(), time.process_time()
        loaded = experiment.load(CONFIGS / recipe, [
            f"output={output}", f"seed={self.seed}", f"run.steps={steps}", "run.minutes=0",
            f"schedule.total_steps={steps}", "schedule.budget_minutes=0", "run.save_minutes=2",
            "run.check_steps=0", "run.log_steps=50", "run.keep=1",
            f"engine.encoder_cache_file={self.out / 'heard.safetensors'}", *overrides,
        ])  # fmt: skip
        outcome = trainer.train(loaded)
        if outcome.signal is not None:
            raise KeyboardInterrupt     # as Ctrl-C: its checkpoint is written
        logs.out(f"{output.name}: done in {(time.monotonic() - started) / 60:.1f} minutes, "
                 f"{(time.process_time() - cpu_s) / 60:.1f} of the processor")  # fmt: skip

    def _ask(self, variant: Variant, model: Path) -> list[dict[str, Any]]:
        """The replies to every question, in each kind of thought that the variant has."""
        assistant = EChat.load(model, seed=self.seed, speaks=False)
        found = []
        for kind in ("label", "natural") if variant.thinks else (None,):
            replies = assistant.reply_many(
                [one.utterance for one in self.part.questions],
                task=THINKING if variant.thinks else PLAIN, thinking=kind, greedy=True,
                batch_size=ASKED_AT_ONCE,
            )  # fmt: skip
            for question, reply in zip(self.part.questions, replies, strict=True):
                told: dict[str, Any] = {"key": question.key, "thinking": kind, "text": ""}
                if isinstance(reply, OsumError):
                    told["error"] = str(reply)
                else:
                    told |= {"text": reply.text, "thought": reply.thought}
                found.append(told)
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """How one variant did, in one kind of thought. right: in the order of the questions."""

    variant: Variant
    thinking: str | None
    right: tuple[bool, ...]
    cells: dict[str, Measure]

    @property
    def title(self) -> str:
        more = ", natural-language thought" if self.thinking == "natural" else ""
        return f"{self.variant.title}{more}"


def rows_of(part: Part, variant: Variant, answers: Sequence[dict[str, Any]]) -> list[Row]:
    """The variant's rows: label thoughts or none first."""
    kinds = list(dict.fromkeys(one["thinking"] for one in answers))
    return [_row(part, variant, kind, {one["key"]: one for one in answers
                                       if one["thinking"] == kind}) for kind in kinds]  # fmt: skip


def _row(part: Part, variant: Variant, kind: str | None, found: dict[str, dict[str, Any]]) -> Row:
    questions = part.questions
    right = [normalise(found[one.key]["text"]) in part.world.right_replies(one.exchange)
             for one in questions]  # fmt: skip
    cells = {name: share([hit for one, hit in zip(questions, right, strict=True)
                          if one.category == name]) for name in CATEGORIES}  # fmt: skip
    return Row(variant, kind, tuple(right), cells | {"all": share(right)})


def blocks(part: Part, rows: Sequence[Row]) -> list[Block]:
    """The tables of the report."""
    printed = {str(row[0]): row[1:] for row in report.paper("echat_eval").rows}
    main = [row for row in rows if row.thinking != "natural"]
    beside: list[list[Cell]] = []
    for row in main:
        if row.variant.printed:
            beside.append([row.variant.printed, *printed[row.variant.printed], None])
            beside.append([f"here: {row.title}", *_cells(row, (*CATEGORIES, "all"))])
    others = [[f"here: {row.title}", *_cells(row, ("all",))] for row in rows]
    full = next((row for row in main if row.variant.name == "full"), None)
    less: list[list[Cell]] = [[row.title, _difference(full, row)] for row in main
                              if full and row is not full]  # fmt: skip
    return [
        f"{len(part.situations)} situations, {len(part.exchanges)} training exchanges, "
        f"{len(part.questions)} test questions in unseen voices, with unseen names of things. A "
        "reply is right when it is word for word one that fits the words and the voice; in "
        "percent, with 95 % bootstrap intervals over questions (not over trainings). The paper's "
        "figures are GPT-4o's scores from 0 to 100 of another test set: compare the order and the "
        "gaps, not the figures.",
        Table("The paper's Table 1 at tiny scale", ("system", *CATEGORIES, "all"), beside,
              own=frozenset(range(1, len(beside), 2))),
        Table("Every variant", ("system", "right reply"), others),
        Table("What the full variant has more", ("than", "right replies, points"), less,
              "On the same questions; an interval without 0 tells a difference."),
    ]  # fmt: skip


def _cells(row: Row, names: Sequence[str]) -> list[Cell]:
    return [row.cells[name] for name in names]


def _difference(full: Row, other: Row) -> Measure:
    """Points by which the full variant is ahead, with the interval of paired questions."""
    first, second = ([100.0 * one for one in row.right] for row in (full, other))
    low, high = paired_interval(first, second)
    points = (sum(first) - sum(second)) / len(first)
    return Measure(points, "", len(first), low, high)


def run(arguments: argparse.Namespace) -> str:
    """Train, ask, write scores.json, report.md and report.html; the report as Markdown.

    Raises InputError; KeyboardInterrupt where a signal ended a training.
    """
    ablation = Ablation(arguments)
    rows: list[Row] = []
    for variant in VARIANTS:
        if variant.name in (arguments.only or NAMES):
            rows += rows_of(ablation.part, variant, ablation.answers(variant))
    write_json(ablation.out / "scores.json", {
        "settings": ablation.settings, "versions": versions(),
        "variants": {f"{row.variant.name}/{row.thinking or 'none'}": {
            name: one.to_json() for name, one in row.cells.items()} for row in rows},
    })  # fmt: skip
    page = report.Page("The paper's ablation at tiny scale", blocks(ablation.part, rows),
                       ablation.settings, versions())  # fmt: skip
    report.write(page, ablation.out)
    return report.markdown(page)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = cli.parser(__doc__)
    add = made.add_argument
    add("--out", type=Path, required=True, help="trainings, scores.json, report.md, report.html")
    add("--start", type=Path, default=Path("exp/tiny/stage0b/final"),
        help="the model whose LLM knows text alone (default: %(default)s)")
    add("--whisper", type=Path, default=Path("build/assets/whisper_tiny_en"),
        help="the encoder that all start from (default: %(default)s)")
    add("--train", type=Path, default=Path("build/world/train"),
        help="exchanges.jsonl and lists (default: %(default)s)")
    add("--test", type=Path, nargs="+", default=[Path("build/world/test")],
        help="folders of test splits (default: build/world/test)")
    add("--situations", type=int, default=25, metavar="N",
        help="those with the most test questions (default: %(default)s)")
    add("--steps", type=int, default=700, metavar="N",
        help="updates of every variant, over all its stages (default: %(default)s)")
    add("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}")
    add("--seed", type=int, default=1, metavar="N")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 2 for what the user can put right; 130 when stopped."""
    arguments = parser().parse_args(argv)
    return cli.run("ablation", lambda: logs.out(run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
