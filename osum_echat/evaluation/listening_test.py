"""A blind listening test: one page that holds its sounds, and what the raters' files amount to.

The page shows each item once for every system, in an order of its own for each item, without
names. key.json, which raters must not see, tells which is which.
"""

import json
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import numpy as np

from osum_echat.errors import InputError
from osum_echat.evaluation import paper, report
from osum_echat.evaluation.echat_items import EChatItem
from osum_echat.evaluation.gallery import of_run
from osum_echat.evaluation.results import Block, Cell, Measure, Table, Words, mean
from osum_echat.evaluation.runner import versions
from osum_echat.files import whole_file, write_json

QUESTIONS = ("fitting words", "fitting voice", "natural speech")
LOWEST, HIGHEST = 0, 100
STEP = 5
SCRIPT = """
const form=document.getElementById('form'),state=JSON.parse(localStorage.getItem(KEY)||'{}');
const show=()=>{document.getElementById('done').textContent=
 Object.keys(state).length+' of '+document.querySelectorAll('input[type=range]').length};
document.querySelectorAll('input[type=range]').forEach(one=>{
 const said=one.nextElementSibling;
 if(one.name in state){one.value=state[one.name];said.textContent=one.value}
 one.addEventListener('input',()=>{state[one.name]=+one.value;said.textContent=one.value;
  localStorage.setItem(KEY,JSON.stringify(state));show()})});
show();
document.getElementById('save').addEventListener('click',()=>{
 const rater=document.getElementById('rater').value.trim();
 if(!rater){alert('Please give a name or number of yours first.');return}
 const data=JSON.stringify({test:KEY,rater:rater,ratings:state},null,1);
 const link=document.createElement('a');
 link.href=URL.createObjectURL(new Blob([data],{type:'application/json'}));
 link.download='ratings-'+rater.replace(/[^A-Za-z0-9_-]/g,'_')+'.json';link.click()});
"""


def run(arguments: Namespace) -> str:
    """Make a test or score one; what came of it."""
    return make(arguments) if arguments.make else score(arguments)


def make(arguments: Namespace) -> str:
    """Write test.html and key.json. Raises InputError where the systems share no items."""
    systems: dict[str, dict[str, Path]] = {}
    items: dict[str, EChatItem] = {}
    for given in arguments.make:
        name, sign, place = given.partition("=")
        if not sign or name in systems:
            raise InputError(f"--make {given}: write NAME=OUT, each name once")
        own, found = of_run(Path(place))
        items |= own
        # Of several kinds of thought in one run, the first stands for the system.
        systems[name] = {one["item"]: Path(place) / one["wav"] for one in reversed(found)
                         if one["wav"]}  # fmt: skip
    shared = sorted(set.intersection(*(set(one) for one in systems.values())))
    if not shared:
        raise InputError("--make: no item that every system has spoken; use runs of the same data")
    rng = Random(arguments.seed)
    picked = _by_turns([items[key] for key in shared], arguments.items, rng)
    key: dict[str, dict[str, str]] = {}
    parts = []
    for number, item in enumerate(picked):
        names = list(systems)
        rng.shuffle(names)
        for letter, name in zip("ABCDEFGHIJ", names, strict=False):
            slot = f"{number}{letter}"
            key[slot] = {"item": item.key, "category": item.category, "system": name}
        parts.append(_asked(number, item, [systems[name][item.key] for name in names]))
    test = f"listening-{arguments.seed}-{len(picked)}-{_digest(key)}"
    with whole_file(arguments.out / "test.html") as file:
        file.write(_page(test, parts).encode())
    write_json(arguments.out / "key.json", {"test": test, "slots": key})
    return (f"{arguments.out / 'test.html'}: {len(picked)} items of {len(systems)} systems; keep "
            f"{arguments.out / 'key.json'} from the raters")  # fmt: skip


def _digest(value: Any) -> str:
    """Changes with the value, the same on every machine."""
    return f"{crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _by_turns(items: Sequence[EChatItem], count: int, rng: Random) -> list[EChatItem]:
    """So many items, drawn by turns from the categories, shuffled."""
    if count < 1:
        raise InputError(f"--items {count}: give 1 or more")
    queues: dict[str, list[EChatItem]] = defaultdict(list)
    for item in items:
        queues[item.category].append(item)
    for queue in queues.values():
        rng.shuffle(queue)
    picked = [queue[turn] for turn in range(len(items)) for queue in queues.values()
              if turn < len(queue)][:count]  # fmt: skip
    rng.shuffle(picked)
    return picked


def _asked(number: int, item: EChatItem, wavs: Sequence[Path]) -> str:
    """The query and every reply with its sliders; the replies' texts would give systems away."""
    rows = []
    for letter, wav in zip("ABCDEFGHIJ", wavs, strict=False):
        sliders = "".join(
            f'<label><span class="asked">{escape(question)}</span> <input type="range" '
            f'name="{number}{letter}/{place}" min="{LOWEST}" max="{HIGHEST}" step="{STEP}" '
            'value="50"><output>-</output></label><br>'
            for place, question in enumerate(QUESTIONS)
        )
        rows.append(f'<div><b>{letter}</b><audio controls preload="none" '
                    f'src="{report.data_uri(wav)}"></audio>{sliders}</div>')
    return (f'<div class="clip"><strong>{number + 1}</strong> {escape(item.transcript)}'
            f'<audio controls preload="none" src="{report.data_uri(item.wav)}"></audio>'
            f"{''.join(rows)}</div>\n")  # fmt: skip


def _page(test: str, parts: Sequence[str]) -> str:
    body = (
        "<p>Listen to the user, then to each reply. Rate every reply from 0 (very bad) to 100 "
        "(very good): do its <b>words</b> fit what was said and how it was said; does its "
        "<b>voice</b> fit the user's state; is it <b>natural</b> speech? The order of the systems "
        "changes from item to item. Your ratings stay in this browser until you save them.</p>"
        '<p><label>Your name or number <input id="rater"></label> <button id="save" type="button">'
        f'Save ratings</button> <span id="done"></span></p><form id="form">{"".join(parts)}</form>'
        f"<script>const KEY={json.dumps(test)};{SCRIPT}</script>\n"
    )
    return report.document("Listening test", body)


def score(arguments: Namespace) -> str:
    """Write scores.json, report.html and report.md of the raters' files. Raises InputError."""
    key = _key(arguments.key or arguments.out / "key.json")
    raters = [_ratings(path, key) for path in arguments.score]
    slots: Mapping[str, Mapping[str, str]] = key["slots"]
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for ratings in raters:
        for name, value in ratings.items():
            slot, _, question = name.partition("/")
            system = slots[slot]["system"]
            for column in (slots[slot]["category"], QUESTIONS[int(question)], "all"):
                values[system, column].append(value)
    systems = list(dict.fromkeys(one["system"] for one in slots.values()))
    categories = list(dict.fromkeys(one["category"] for one in slots.values()))
    measures = {f"{system}/{column}": mean(values[system, column]) for system in systems
                for column in (*categories, *QUESTIONS, "all") if values[system, column]}
    agreement = alpha(raters)
    measures["agreement"] = Measure(agreement, "", len(raters))
    own: list[tuple[str, list[Cell]]] = [
        (system, [measures.get(f"{system}/{name}") for name in paper.CATEGORIES])
        for system in systems]  # fmt: skip
    rows: list[list[Cell]] = [[name, one, str(one.count)] for name, one in measures.items()]
    blocks: list[Block] = [
        Words(f"{len(raters)} raters. Means with 95 % bootstrap intervals over ratings. Agreement "
              "is Krippendorff's alpha for intervals: 1 is perfect, 0 is chance."),
        paper.HUMAN.beside(own), Table("Scores", ("what", "mean", "ratings"), rows),
    ]  # fmt: skip
    page = report.Page("Rated by people", blocks, {"test": key["test"]}, versions())
    report.write(page, arguments.out)
    found = {name: one.to_json() for name, one in measures.items()}
    write_json(arguments.out / "scores.json", {"measures": found})
    return f"{arguments.out / 'report.html'}: {len(raters)} raters, agreement " + (
        "-" if agreement is None else f"{agreement:.2f}")


def _key(place: Path) -> dict[str, Any]:
    try:
        key: dict[str, Any] = json.loads(place.read_bytes())
        return {"test": key["test"], "slots": key["slots"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: not the key of a test ({error!r}); give --key FILE") from error


def _ratings(path: Path, key: Mapping[str, Any]) -> dict[str, float]:
    """One rater's numbers by slot and question. Raises InputError for another test's file."""
    try:
        raw = json.loads(path.read_bytes())
        test, ratings = raw["test"], dict(raw["ratings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what the page saves ({error!r})") from error
    if test != key["test"]:
        raise InputError(f"{path}: ratings of test {test}, the key is of {key['test']}")
    known = {f"{slot}/{place}" for slot in key["slots"] for place in range(len(QUESTIONS))}
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
