"""What people hear of echat_eval runs: a blind listening test, and a page of players by category.

The test's page shows each item once for every system, in an order of its own for each item, without
names or texts, which would give systems away. key.json, which raters must not see, tells which is
which.
"""

import json
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import numpy as np

from osum_echat.errors import InputError
from osum_echat.evaluation import report, runner
from osum_echat.evaluation.echat_eval import IDENTITY, MULTI, MULTI_TURN, EChatItem, clip_of, read
from osum_echat.evaluation.report import CATEGORIES, Clip, Measure, Players, mean
from osum_echat.evaluation.runner import Prediction
from osum_echat.files import read_journal, write_json
from osum_echat.settings import read_mapping

QUESTIONS = ("fitting words", "fitting voice", "natural speech")
LETTERS = "ABCDEFGHIJ"                  # of the systems
LOWEST, HIGHEST = 0, 100
SECTIONS: Mapping[str, Sequence[str]] = {
    "Emotion": ("emotion",), "Age and gender": ("age", "gender"), "Sound events": ("event",),
    "Several cues at once": (MULTI,), "Knowledge": ("knowledge", "qa"),
    "Several turns": (MULTI_TURN,), "Who it is": (IDENTITY,),
}  # fmt: skip
OTHER = "More"


def run(options: Namespace) -> str:
    """Make or score a test, or write a gallery; what came of it. Raises an OsumError."""
    if options.command == "gallery":
        return gallery(options)
    return make(options) if options.make else score(options)


def of_run(out: Path) -> tuple[dict[str, EChatItem], list[Prediction]]:
    """The items of an echat_eval run by key, and its predictions. Raises InputError."""
    settings = read_mapping(out / runner.SETTINGS, InputError, "give what echat_eval wrote")
    if settings.get("suite") != "echat_eval":
        raise InputError(f"{out}: a run of {settings.get('suite')}; give one of echat_eval")
    items, _ = read(Path(str(settings.get("data"))))
    found = {one["key"]: one for _, one in read_journal(out / runner.PREDICTIONS)}
    return {one.key: one for one in items}, runner.made(list(found.values()))


def gallery(options: Namespace) -> str:
    """Write index.html; where it is."""
    items, found = of_run(options.source)
    sounding = [one for one in found if one["wav"] and one["item"] in items]
    if not sounding:
        raise InputError(f"{options.source}: no spoken replies to show; run echat_eval first")
    named = {category for categories in SECTIONS.values() for category in categories}
    more = tuple({one["category"] for one in sounding} - named)
    blocks = []
    for title, categories in {**SECTIONS, OTHER: more}.items():
        own = [one for one in sounding if one["category"] in categories][: options.each]
        if own:
            clips = [clip_of(items[one["item"]], one, options.source) for one in own]
            blocks.append(Players(title, clips))
    place: Path = options.out / "index.html"
    report.write_html(report.Page(options.title, blocks, links=True), place)
    return f"{place}: {len(blocks)} sections"


def make(options: Namespace) -> str:
    """Write test.html and key.json. Raises InputError where the systems share no items."""
    systems: dict[str, dict[str, Path]] = {}
    items: dict[str, EChatItem] = {}
    for given in options.make:
        name, sign, place = given.partition("=")
        if not sign or name in systems:
            raise InputError(f"--make {given}: write NAME=OUT, each name once")
        own, found = of_run(Path(place))
        items |= own
        # Of several kinds of thought in one run, the first stands for the system.
        systems[name] = {one["item"]: Path(place) / one["wav"] for one in reversed(found)
                         if one["wav"]}  # fmt: skip
    if len(systems) > len(LETTERS):
        raise InputError(f"--make: {len(systems)} systems; a page holds {len(LETTERS)} at most")
    shared = sorted(set.intersection(*(set(one) for one in systems.values())) & set(items))
    if not shared:
        raise InputError("--make: no item that every system has spoken; use runs of the same data")
    rng = Random(options.seed)
    if options.items < 1:
        raise InputError(f"--items {options.items}: give 1 or more")
    drawn = rng.sample([items[one] for one in shared], len(shared))
    picked = runner.limited(drawn, options.items, lambda item: item.category)
    rng.shuffle(picked)
    key: dict[str, dict[str, str]] = {}
    clips = []
    for number, item in enumerate(picked):
        names = list(systems)
        rng.shuffle(names)
        sounds = {"user": item.wav}
        for letter, name in zip(LETTERS, names, strict=False):
            key[f"{number}{letter}"] = {"item": item.key, "category": item.category, "system": name}
            sounds[letter] = systems[name][item.key]
        sliders = {letter: {f"{number}{letter}/{place}": question
                            for place, question in enumerate(QUESTIONS)}
                   for letter in sounds if letter != "user"}  # fmt: skip
        clips.append(Clip(f"{number + 1}. {item.transcript}", sounds, sliders=sliders))
    digest = f"{crc32(json.dumps(key, sort_keys=True).encode()):08x}"
    test = f"listening-{options.seed}-{len(picked)}-{digest}"
    page = report.Page("Listening test", [Players("", clips)], test=test)
    report.write_html(page, options.out / "test.html")
    write_json(options.out / "key.json", {"test": test, "slots": key})
    return (f"{options.out / 'test.html'}: {len(picked)} items of {len(systems)} systems; keep "
            f"{options.out / 'key.json'} from the raters")  # fmt: skip


def score(options: Namespace) -> str:
    """Write scores.json, report.html and report.md of the raters' files. Raises InputError."""
    place = options.key or options.out / "key.json"
    key = read_mapping(place, InputError, "give --key FILE")
    if not isinstance(key.get("slots"), dict) or "test" not in key:
        raise InputError(f"{place}: not the key of a test; give --key FILE")
    raters = [_ratings(path, key) for path in options.score]
    slots: Mapping[str, Mapping[str, str]] = key["slots"]
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for ratings in raters:
        for name, value in ratings.items():
            slot, _, question = name.partition("/")
            for column in (slots[slot]["category"], QUESTIONS[int(question)], "all"):
                values[slots[slot]["system"], column].append(value)
    systems = dict.fromkeys(one["system"] for one in slots.values())
    categories = dict.fromkeys(one["category"] for one in slots.values())
    measures = {f"{system}/{column}": mean(values[system, column]) for system in systems
                for column in (*categories, *QUESTIONS, "all") if values[system, column]}
    agreement = alpha(raters)
    measures["agreement"] = Measure(agreement, "", len(raters))
    own = [(system, [measures.get(f"{system}/{name}") for name in CATEGORIES])
           for system in systems]  # fmt: skip
    blocks: list[report.Block] = [
        f"{len(raters)} raters. Means with 95 % bootstrap intervals over ratings. Agreement is "
        "Krippendorff's alpha for intervals: 1 is perfect, 0 is chance.",
        report.paper("human").beside(own), report.scores(measures, ("what", "mean", "ratings")),
    ]  # fmt: skip
    report.write(report.Page("Rated by people", blocks, {"test": key["test"]}, runner.versions()),
                 options.out)  # fmt: skip
    found = {name: one.to_json() for name, one in measures.items()}
    write_json(options.out / "scores.json", {"measures": found})
    return f"{options.out / 'report.html'}: {len(raters)} raters, agreement " + (
        "-" if agreement is None else f"{agreement:.2f}")


def _ratings(path: Path, key: Mapping[str, Any]) -> dict[str, float]:
    """One rater's numbers by slot and question. Raises InputError for another test's file."""
    raw = read_mapping(path, InputError, "give what the page saves")
    if not isinstance(raw.get("ratings"), dict) or "test" not in raw:
        raise InputError(f"{path}: not what the page saves")
    if raw["test"] != key["test"]:
        raise InputError(f"{path}: ratings of test {raw['test']}, the key is of {key['test']}")
    known = {f"{slot}/{place}" for slot in key["slots"] for place in range(len(QUESTIONS))}
    ratings: dict[str, float] = raw["ratings"]
    for name, value in ratings.items():
        is_number = isinstance(value, int | float) and LOWEST <= value <= HIGHEST
        if name not in known or not is_number:
            raise InputError(f"{path}: rating {name!r} is {value!r}; need one of the page's "
                             f"sliders, {LOWEST} to {HIGHEST}")  # fmt: skip
    return ratings


def alpha(raters: Sequence[Mapping[str, float]]) -> float | None:
    """Krippendorff's alpha with the interval metric; None where nothing was rated twice.

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: 1 less the mean squared
    difference within units over that between any two values.
    """
    units: dict[str, list[float]] = defaultdict(list)
    for ratings in raters:
        for name, value in ratings.items():
            units[name].append(float(value))
    paired = [values for values in units.values() if len(values) > 1]
    every = np.array([value for values in paired for value in values])
    if len(every) < 2:
        return None
    within = sum(
        2 * sum((a - b) ** 2 for a, b in combinations(values, 2)) / (len(values) - 1)
        for values in paired
    ) / len(every)
    between = 2 * float(every.var()) * len(every) / (len(every) - 1)
    return 1.0 if between == 0 else 1.0 - within / between
