"""A page of results that stands alone: one HTML file with its pictures and sounds, and Markdown."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError
from osum_echat.evaluation import pictures
from osum_echat.evaluation.results import (
    Bars,
    Block,
    Cell,
    Clip,
    Matrix,
    Measure,
    Players,
    Stack,
    Table,
    Words,
)  # fmt: skip
from osum_echat.files import whole_file

STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:.5rem 0}.wide{overflow-x:auto}
td,th{padding:.25rem .7rem;border-bottom:1px solid #8884;text-align:right;vertical-align:top}
td:first-child,th:first-child{text-align:left}tr.own{font-weight:600;background:#3b6ea522}
td{white-space:nowrap}td.word{text-align:left;white-space:normal}
.note,.interval{color:#888;font-size:.85em;font-weight:400}td .interval{display:block}
.asked{display:inline-block;min-width:8em}
svg{max-width:100%;height:auto}.clip{border:1px solid #8884;border-radius:6px;padding:.6rem .8rem;
margin:.6rem 0}.clip audio{display:block;width:100%;height:34px;margin:.15rem 0 .4rem}
.clip b{margin-right:.4em}dl{display:grid;grid-template-columns:max-content 1fr;gap:0 1rem}
dt{color:#888}dd{margin:0;overflow-wrap:anywhere}
"""
SOUND_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg",
               ".ogg": "audio/ogg", ".opus": "audio/ogg"}  # fmt: skip
LARGEST_SOUND_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """A title, what was found, and how it came about."""

    title: str
    blocks: Sequence[Block]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


def write(page: Page, out: Path) -> None:
    """Write report.html and report.md, each whole or not at all."""
    with whole_file(out / "report.html") as file:
        file.write(html(page).encode())
    with whole_file(out / "report.md") as file:
        file.write(markdown(page).encode())


def html(page: Page) -> str:
    """The page as one HTML file that asks for nothing else."""
    body = "\n".join(html_of(block) for block in page.blocks)
    return document(page.title, f"{body}\n{_facts('Settings', page.settings)}"
                                f"{_facts('Versions', page.versions)}")  # fmt: skip


def document(title: str, body: str, head: str = "") -> str:
    """A whole HTML document. head: more of its head, such as a script."""
    return (
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{head}</head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def html_of(block: Block) -> str:
    """One block as HTML."""
    match block:
        case Words():
            return f"<p>{escape(block.text)}</p>"
        case Table():
            return _heading(block.title) + _table(block)
        case Bars():
            return _heading(block.title) + pictures.bars(block)
        case Stack():
            return _heading(block.title) + pictures.stack(block)
        case Matrix():
            return _heading(block.title) + pictures.matrix(block)
        case Players():
            return _heading(block.title) + "".join(map(clip, block.clips))


def clip(one: Clip) -> str:
    """Players of one item under its words."""
    lines = "".join(f"<div><b>{escape(name)}</b>{escape(text)}</div>"
                    for name, text in one.lines.items())  # fmt: skip
    sounds = "".join(
        f'<div><b>{escape(name)}</b></div><audio controls preload="none" '
        f'src="{data_uri(path)}"></audio>'
        for name, path in one.sounds.items()
    )
    return f'<div class="clip"><strong>{escape(one.caption)}</strong>{lines}{sounds}</div>\n'


def data_uri(path: Path) -> str:
    """A sound file as text. Raises InputError for one that is missing, too long or unknown."""
    kind = SOUND_TYPES.get(path.suffix.lower())
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it is needed for the report") from error
    if kind is None or len(data) > LARGEST_SOUND_BYTES:
        raise InputError(f"{path}: no sound that a page can hold; give wav, flac, mp3 or ogg "
                         f"below {LARGEST_SOUND_BYTES >> 20} MB, or --players 0")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>\n"


def _table(block: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in block.columns)
    rows = []
    for number, row in enumerate(block.rows):
        own = ' class="own"' if number in block.own else ""
        rows.append(f"<tr{own}>{''.join(_td(cell) for cell in row)}</tr>")
    note = f'<p class="note">{escape(block.note)}</p>' if block.note else ""
    return (f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}'
            f"</tbody></table></div>{note}")  # fmt: skip


def _td(cell: Cell) -> str:
    if isinstance(cell, Measure) and cell.low is not None and cell.high is not None:
        return (f'<td title="n={cell.count}">{cell.value:.2f} <span class="interval">'
                f"[{cell.low:.2f}, {cell.high:.2f}]</span></td>")  # fmt: skip
    kind = ' class="word"' if isinstance(cell, str) and len(cell) > 24 else ""
    return f"<td{kind}>{escape(plain(cell))}</td>"


def plain(cell: Cell) -> str:
    """A cell as text."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return str(cell)


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
                   for name, value in facts.items())  # fmt: skip
    return f"{_heading(title)}<dl>{rows}</dl>\n"


def markdown(page: Page) -> str:
    """The tables and words of the page; pictures and sounds are only in the HTML."""
    parts = [f"# {page.title}", *filter(None, map(_markdown_of, page.blocks))]
    for title, facts in (("Settings", page.settings), ("Versions", page.versions)):
        lines = [f"- {name}: {_one_line(str(value))}" for name, value in facts.items()]
        parts.append("\n".join([f"## {title}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _markdown_of(block: Block) -> str:
    if isinstance(block, Words):
        return block.text
    if not isinstance(block, Table):
        return ""
    rows = [block.columns, ["---"] * len(block.columns)]
    rows += [[plain(cell) for cell in row] for row in block.rows]
    lines = ["| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in rows]
    note = ["", block.note] if block.note else []
    return "\n".join([f"## {block.title}", "", *lines, *note])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
