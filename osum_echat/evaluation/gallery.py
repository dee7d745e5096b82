"""The replies of an echat_eval run as a page of players by category, to be shown to others."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from osum_echat.errors import InputError
from osum_echat.evaluation import report
from osum_echat.evaluation.echat_eval import clip_of
from osum_echat.evaluation.echat_items import IDENTITY, MULTI, MULTI_TURN, EChatItem, read
from osum_echat.evaluation.predictions import Lines, Prediction, made
from osum_echat.files import whole_file

SECTIONS: Mapping[str, Sequence[str]] = {
    "Emotion": ("emotion",), "Age and gender": ("age", "gender"), "Sound events": ("event",),
    "Several cues at once": (MULTI,), "Knowledge": ("knowledge", "qa"),
    "Several turns": (MULTI_TURN,), "Who it is": (IDENTITY,),
}  # fmt: skip
OTHER = "More"


def of_run(out: Path) -> tuple[dict[str, EChatItem], list[Prediction]]:
    """The items of an echat_eval run by key, and its predictions. Raises InputError."""
    try:
        settings = json.loads((out / "settings.json").read_bytes())
        if settings["suite"] != "echat_eval":
            raise InputError(f"{out}: a run of {settings['suite']}; give one of echat_eval")
        items = {one.key: one for one in read(Path(settings["data"]))}
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{out}: not what echat_eval wrote ({error!r})") from error
    with Lines(out / "predictions.jsonl") as lines:
        found = made(list(lines.found.values()))
    return items, found


def run(arguments: Namespace) -> str:
    """Write index.html; where it is."""
    items, found = of_run(arguments.source)
    sounding = [one for one in found if one["wav"] and one["item"] in items]
    if not sounding:
        raise InputError(f"{arguments.source}: no spoken replies to show; run echat_eval first")
    named = {category for categories in SECTIONS.values() for category in categories}
    sections = dict(SECTIONS) | {OTHER: tuple({one["category"] for one in sounding} - named)}
    parts = []
    for title, categories in sections.items():
        own = [one for one in sounding if one["category"] in categories][: arguments.each]
        if own:
            clips = "".join(report.clip(clip_of(items[one["item"]], one, arguments.source))
                            for one in own)  # fmt: skip
            parts.append((title, clips))
    links = " · ".join(f'<a href="#{number}">{escape(title)}</a>'
                       for number, (title, _) in enumerate(parts))  # fmt: skip
    body = "".join(f'<h2 id="{number}">{escape(title)}</h2>\n{clips}'
                   for number, (title, clips) in enumerate(parts))  # fmt: skip
    place: Path = arguments.out / "index.html"
    with whole_file(place) as file:
        file.write(report.document(arguments.title, f"<p>{links}</p>\n{body}").encode())
    return f"{place}: {len(parts)} sections"
