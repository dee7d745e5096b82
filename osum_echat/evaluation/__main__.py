"""Measure a model by one command: see --help. Nothing heavy is loaded for that."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat import cli, logs
from osum_echat.errors import DataError, InputError
from osum_echat.paths import TINY

if TYPE_CHECKING:
    from osum_echat.evaluation.report import Outcome
    from osum_echat.evaluation.runner import Model

LOG = logs.logger(__name__)
SAMPLES = TINY / "samples" / "samples.jsonl"
WIDEST = 46                             # name of a measure that is printed
Parser = argparse.ArgumentParser


def _add_judge(one: Parser) -> None:
    """What two suites take; in `all` it is added once."""
    if any("--judge" in action.option_strings for action in one._actions):
        return
    add = one.add_argument_group("judge").add_argument
    add("--judge", choices=("rules-v1", "chat"), default="rules-v1",
        help="rules-v1: word rules, offline; chat: a model behind OPENAI_BASE_URL, with "
        "OPENAI_API_KEY (default rules-v1)")
    add("--judge-model", metavar="NAME", help="of the chat judge, such as gpt-4o")
    add("--judge-temperature", type=float, default=0.0)
    add("--judge-n", type=int, default=1, help="answers an item, averaged")
    add("--judge-seed", type=int, default=0)
    add("--judge-rounds", type=int, default=3, help="most requests for readable answers")
    add("--judge-workers", type=int, default=8, help="requests at a time")
    add("--judge-timeout", type=float, default=60.0, metavar="S")
    add("--judge-tries", type=int, default=6, help="HTTP tries a request, with growing pauses")
    add("--judge-prices", type=float, nargs=2, metavar=("IN", "OUT"),
        help="money for a million prompt and completion tokens, to sum the cost")


def _add_echat_eval(one: Parser) -> None:
    _add_judge(one)
    add = one.add_argument
    add("--thinking", nargs="+", choices=("label", "natural", "none"), metavar="KIND",
        help="kinds of thought to compare: label natural none (default: what the model can)")
    add("--reply-emotion", choices=("acoustic-v2", "own-model"), default="acoustic-v2",
        help="what hears the emotion of replies (default acoustic-v2)")
    add("--neutral-style", metavar="TAG",
        help="tag of a plain manner, where the voice has manners (acoustic-v2)")


def _add_understanding(one: Parser) -> None:
    one.add_argument("--task", metavar="TAG",
                     help="ask this of every item (default: the list's own tags)")
    one.add_argument("--noise", nargs="*", type=float, default=[], metavar="DB",
                     help="also with white noise at these signal-to-noise ratios")


def _add_tts(one: Parser) -> None:
    add = one.add_argument
    add("--asr", metavar="DIR", default="own-model",
        help="ASR judge: a faster-whisper directory (default: own-model)")
    add("--no-prompt", action="store_true",
        help="speak in the model's own voice, not in that of each prompt")
    add("--tts-task", default="tts", metavar="NAME", help="task that reads out (default tts)")


@dataclass(frozen=True, slots=True)
class Row:
    """A suite as a command. data: of its own, where --data is not given; add: its options."""

    about: str
    reads: str
    add: Callable[[Parser], None] = lambda one: None
    data: Path | None = None
    speaks: bool = True                 # needs the model's voice
    is_shared: bool = True              # between machines; False: it measures this one


SUITES: Mapping[str, Row] = {           # latency is first: its cold turn needs a fresh model
    "latency": Row(
        "time and memory of each part of a spoken exchange, warm and cold",
        "anything that echat_eval reads", data=SAMPLES, is_shared=False),
    "echat_eval": Row(
        "empathetic dialogue, scored by a judge (the paper's Table 1)",
        "jsonl in EChat-eval or HumDial style, or a folder of the tiny world",
        _add_echat_eval, SAMPLES),
    "understanding": Row(
        "ASR, emotion, gender, age, event, style; robustness by speaker and noise",
        "raw, shard or combine list, or a folder of the tiny world",
        _add_understanding, SAMPLES, speaks=False),
    "tts": Row(
        "synthesis: errors heard by an ASR judge, speaker similarity (SEED-TTS-eval)",
        "SEED-TTS meta.lst (name|prompt text|prompt wav|text), or a folder of the tiny world",
        _add_tts, SAMPLES),
    "voicebench": Row(
        "VoiceBench: rule-based scores, and lines for its own evaluators",
        "a folder of VoiceBench jsonl files, or one of them", _add_judge,
        speaks=False),
    "tiny_world": Row(
        "right replies of the tiny world's test split", "a folder of the tiny world",
        speaks=False),
}  # fmt: skip


def parser() -> Parser:
    """All commands and their options."""
    made = cli.OneLineParser(
        prog="python -m osum_echat.evaluation",
        description="Measure a model: predictions, scores.json, report.html and report.md in --out."
        " A run that was stopped goes on where it was when started again. Exit code: 0; 1 some "
        "items failed, or a suite of all on its own data; 2 wrong use or nothing to score.",
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="SUITE")
    for name, row in SUITES.items():
        one = commands.add_parser(name, help=row.about, description=row.about)
        default = "" if row.data is None else " (default: the samples of the tiny world)"
        _add_run(one, type=Path, required=row.data is None, default=row.data, metavar="PATH",
                 help=row.reads + default)  # fmt: skip
        row.add(one)
    every = commands.add_parser("all", help="every suite that --data can feed, each in OUT/SUITE")
    _add_run(every, default=[], action="append", metavar="[SUITE=]PATH",
             help="what a suite reads, as SUITE=PATH; without SUITE= for all of them")
    for row in SUITES.values():
        row.add(every)
    _add_human(commands.add_parser("human", help="a blind listening test, made and scored"))
    gallery = commands.add_parser("gallery", help="a page of players by category").add_argument
    gallery("--from", dest="source", type=Path, required=True, metavar="OUT",
            help="what an echat_eval run wrote")
    gallery("--out", type=Path, required=True, metavar="DIR", help="index.html is written there")
    gallery("--each", type=int, default=4, help="items a category (default 4)")
    gallery("--title", default="OSUM-EChat: spoken replies")
    return made


def _add_run(one: Parser, **data: Any) -> None:
    """What every suite takes."""
    cli.add_model(one)
    add = one.add_argument
    add("--data", **data)
    add("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    add("--limit", type=int, metavar="N", help="only the first N items")
    add("--seed", type=int, default=0, metavar="N", help="of all sampling (default 0)")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--players", type=int, default=8, metavar="N", help="items to hear in the report")
    add("--overwrite", action="store_true", help="throw away what --out holds")
    cli.add_ray(one)
    add("--workers", type=int, metavar="N",
        help="of --ray (default: one for each card, or on CPUs one for each machine)")


def _add_human(one: Parser) -> None:
    add = one.add_argument
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("--make", nargs="+", metavar="NAME=OUT",
                      help="systems and the folders of their echat_eval runs")
    what.add_argument("--score", nargs="+", type=Path, metavar="JSON", help="what raters saved")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--items", type=int, default=20, help="items on the page (default 20)")
    add("--seed", type=int, default=0, help="of the shuffling")
    add("--key", type=Path, metavar="FILE", help="for --score: key.json that --make wrote")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 when items failed; 2 for what the user can put right; 130 when stopped."""
    options = parser().parse_args(argv)
    return cli.run("evaluation", lambda: cli.importable(run)(options))


def run(options: Namespace) -> int:
    """Do what the options ask for. Returns the exit code; raises an OsumError."""
    if options.command in ("human", "gallery"):
        from osum_echat.evaluation import listening_test

        logs.out(listening_test.run(options))
        return 0
    if options.command == "all":
        return run_all(options)
    model = model_of(options, SUITES[options.command].speaks)
    said, failed = run_suite(options.command, options, model)
    logs.out(said)
    return cli.SOME_FAILED if failed else 0


def run_suite(name: str, options: Namespace, model: "Model") -> tuple[str, int]:
    """One suite: its measures as a table of text, and how many items failed."""
    from osum_echat.evaluation import runner

    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit}: give 1 or more")
    if options.ray and not SUITES[name].is_shared:
        raise InputError(f"{name}: measures this machine; run it without --ray")
    asked = runner.Run(name, options, model)
    outcome, failed = runner.run(import_module(f"osum_echat.evaluation.{name}").build(asked), asked)
    told = f"{failed} items failed; " if failed else ""
    return f"{summary(outcome)}\n{told}{options.out / 'report.html'}", failed


def run_all(options: Namespace) -> int:
    """Every suite that finds its data; which ones did not, and why. Raises InputError for none."""
    places = _places(options.data)
    model = model_of(options)
    said, lost, done = [], 0, 0
    for name, row in SUITES.items():
        place = places.get(name, places.get("", row.data))
        if place is None:
            said.append(f"{name}: left out, no --data {name}=PATH")
            continue
        own = Namespace(**vars(options) | {"data": Path(place), "out": options.out / name})
        try:
            told, failed = run_suite(name, own, model)
            said.append(f"{name}\n{told}")
            lost, done = lost + failed, done + 1
        except (InputError, DataError) as error:
            LOG.warning("%s: %s", name, error)
            said.append(f"{name}: left out: {error}")
            lost += name in places or "" not in places      # not for data of another kind
    logs.out("\n\n".join(said))
    if not done:
        raise InputError("--data: no suite could be run")
    return cli.SOME_FAILED if lost else 0


def _places(given: Sequence[str]) -> dict[str, str]:
    """SUITE=PATH by suite; a path alone stands under ''."""
    places: dict[str, str] = {}
    for one in given:
        name, sign, path = one.partition("=")
        suite, place = (name, path) if sign and name in SUITES else ("", one)
        if suite in places:
            raise InputError(f"--data {one}: a second path for {suite or 'all suites'}; write "
                             "SUITE=PATH, each suite once")  # fmt: skip
        places[suite] = place
    return places


def model_of(options: Namespace, speaks: bool = True) -> "Model":
    """The model that the options name, not loaded yet."""
    from osum_echat.evaluation.runner import Model
    from osum_echat.inference.assistant import EChat

    return Model(str(options.model), lambda: EChat.load(
        str(options.model), seed=options.seed, speaks=speaks, **cli.loading(options)
    ))  # fmt: skip


def summary(outcome: "Outcome") -> str:
    """The measures, one a line."""
    both = {**outcome.measures, **outcome.timings}
    return "\n".join(f"{name:<{WIDEST}} {one}  n={one.count}" for name, one in both.items())


if __name__ == "__main__":
    sys.exit(main())
