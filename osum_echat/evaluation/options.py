"""The options of `python -m osum_echat.evaluation`; nothing heavy is loaded for --help."""

import argparse
from pathlib import Path

from osum_echat.cli import add_model

SUITES = {                              # latency is first: its cold turn needs a fresh model
    "latency": "time and memory of each part of a spoken exchange, warm and cold",
    "echat_eval": "empathetic dialogue, scored by a judge (the paper's Table 1)",
    "understanding": "ASR, emotion, gender, age, event, style; robustness by speaker and noise",
    "tts": "synthesis: errors heard by an ASR judge, speaker similarity (SEED-TTS-eval)",
    "voicebench": "VoiceBench: rule-based scores, and lines for its own evaluators",
    "tiny_world": "right replies of the tiny world's test split",
}
THINKING = ("label", "natural", "none")
READS = {
    "echat_eval": "jsonl in EChat-eval or HumDial style, or a folder of the tiny world",
    "understanding": "raw, shard or combine list, or a folder of the tiny world",
    "tts": "SEED-TTS meta.lst (name|prompt text|prompt wav|text), or a folder of the tiny world",
    "voicebench": "a folder of VoiceBench jsonl files, or one of them",
    "latency": "anything that echat_eval reads",
    "tiny_world": "a folder of the tiny world",
}


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    made = argparse.ArgumentParser(
        prog="python -m osum_echat.evaluation",
        description="Measure a model: predictions, scores.json, report.html and report.md in --out."
        " A run that was stopped goes on where it was when started again.",
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="SUITE")
    for name, about in SUITES.items():
        one = commands.add_parser(name, help=about, description=about)
        add_run(one, f"{READS[name]}")
        _add_own(one, name)
    every = commands.add_parser("all", help="every suite that --data can feed, each in OUT/SUITE")
    add_run(every, "what a suite reads, as SUITE=PATH; without SUITE= for all of them", many=True)
    for name in SUITES:
        _add_own(every, name)
    _add_human(commands.add_parser("human", help="a blind listening test, made and scored"))
    gallery = commands.add_parser("gallery", help="a page of players by category")
    gallery.add_argument("--from", dest="source", type=Path, required=True, metavar="OUT",
                         help="what an echat_eval run wrote")
    gallery.add_argument("--out", type=Path, required=True, metavar="DIR",
                         help="index.html is written there")
    gallery.add_argument("--each", type=int, default=4, help="items a category (default 4)")
    gallery.add_argument("--title", default="OSUM-EChat: spoken replies")
    return made


def add_run(one: argparse.ArgumentParser, reads: str, many: bool = False) -> None:
    """What every suite takes."""
    add_model(one)
    add = one.add_argument
    if many:
        add("--data", required=True, action="append", metavar="[SUITE=]PATH", help=reads)
    else:
        add("--data", type=Path, required=True, metavar="PATH", help=reads)
    add("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    add("--limit", type=int, metavar="N", help="only the first N items")
    add("--seed", type=int, default=0, metavar="N", help="of all sampling (default 0)")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--players", type=int, default=8, metavar="N", help="items to hear in the report")
    add("--overwrite", action="store_true", help="throw away what --out holds")


def _add_own(one: argparse.ArgumentParser, suite: str) -> None:
    """What only some suites take; an option that two share is added once."""
    known = {name for action in one._actions for name in action.option_strings}
    if suite in ("echat_eval", "voicebench") and "--judge" not in known:
        _add_judge(one)
    add = one.add_argument
    if suite == "echat_eval":
        add("--thinking", nargs="+", choices=THINKING, metavar="KIND",
            help="kinds of thought to compare: label natural none (default: what the model can)")
        add("--reply-emotion", choices=("acoustic-v2", "own-model"), default="acoustic-v2",
            help="what hears the emotion of replies (default acoustic-v2)")
        add("--neutral-style", metavar="TAG",
            help="tag of a plain manner, where the voice has manners (acoustic-v2)")
    if suite == "understanding":
        add("--task", metavar="TAG", help="ask this of every item (default: the list's own tags)")
        add("--noise", nargs="*", type=float, default=[], metavar="DB",
            help="also with white noise at these signal-to-noise ratios")
    if suite == "tts":
        add("--asr", metavar="DIR", default="own-model",
            help="ASR judge: a faster-whisper directory (default: own-model)")
        add("--no-prompt", action="store_true",
            help="speak in the model's own voice, not in that of each prompt")
        add("--tts-task", default="tts", metavar="NAME", help="task that reads out (default tts)")


def _add_judge(one: argparse.ArgumentParser) -> None:
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


def _add_human(one: argparse.ArgumentParser) -> None:
    add = one.add_argument
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("--make", nargs="+", metavar="NAME=OUT",
                      help="systems and the folders of their echat_eval runs")
    what.add_argument("--score", nargs="+", type=Path, metavar="JSON", help="what raters saved")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--items", type=int, default=20, help="items on the page (default 20)")
    add("--seed", type=int, default=0, help="of the shuffling")
    add("--key", type=Path, metavar="FILE", help="for --score: key.json that --make wrote")
