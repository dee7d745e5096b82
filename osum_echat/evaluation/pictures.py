"""Bars, stacked bars and confusions as SVG text that needs nothing else to be seen."""

from html import escape

from osum_echat.evaluation.results import Bars, Matrix, Stack

COLOURS = ("#3b6ea5", "#d98032", "#5a9a5f", "#a5527f", "#8a7f3c", "#5f6b7a", "#4fa3a5", "#b3554d")
WIDTH = 760
LEFT, RIGHT = 60, 16
PLOT = WIDTH - LEFT - RIGHT
BAR_HEIGHT = 220
CELL = 68
ROW = 30


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def bars(block: Bars) -> str:
    """Grouped bars with a whisker for each interval."""
    found = [one for row in block.values.values() for one in row if one and one.value is not None]
    highs = [high for one in found if (high := max(one.value or 0, one.high or 0)) > 0]
    top = _round_up(max(highs, default=1.0))
    bottom = BAR_HEIGHT + 10
    parts = _grid(top, bottom, block.unit)
    step = PLOT / max(1, len(block.groups))
    width = min(46.0, 0.8 * step / max(1, len(block.values)))
    for group, name in enumerate(block.groups):
        middle = LEFT + step * (group + 0.5)
        parts.append(_text(middle, bottom + 18, name, "middle"))
        start = middle - width * len(block.values) / 2
        for series, row in enumerate(block.values.values()):
            one = row[group]
            if one is None or one.value is None:
                continue
            left = start + series * width
            height = BAR_HEIGHT * max(0.0, one.value) / top
            tip = f"<title>{escape(f'{list(block.values)[series]}, {name}: {one}')}</title>"
            parts.append(
                f'<rect x="{left + 1:.1f}" y="{bottom - height:.1f}" width="{width - 2:.1f}" '
                f'height="{height:.1f}" fill="{colour(series)}">{tip}</rect>'
            )
            if one.low is not None and one.high is not None:
                ends = (bottom - BAR_HEIGHT * max(0.0, end) / top for end in (one.low, one.high))
                parts.append(_whisker(left + width / 2, *ends))
    parts += _legend(list(block.values), bottom + 40)
    return _svg(bottom + 52 + 18 * _legend_rows(list(block.values)), parts, block.title)


def stack(block: Stack) -> str:
    """A lying bar for each row, its parts one behind the other."""
    longest = _round_up(max((sum(row) for row in block.rows.values()), default=1.0) or 1.0)
    parts, top = [], 10
    left = 150
    scale = (WIDTH - left - 80) / longest
    for name, row in block.rows.items():
        parts.append(_text(left - 8, top + 17, name, "end"))
        place = float(left)
        for number, value in enumerate(row):
            tip = f"<title>{escape(f'{block.parts[number]}: {value:.3f} {block.unit}')}</title>"
            parts.append(
                f'<rect x="{place:.1f}" y="{top}" width="{max(0.0, value * scale):.1f}" '
                f'height="{ROW - 8}" fill="{colour(number)}">{tip}</rect>'
            )
            place += value * scale
        parts.append(_text(place + 6, top + 17, f"{sum(row):.2f} {block.unit}"))
        top += ROW
    parts += _legend(list(block.parts), top + 16)
    return _svg(top + 28 + 18 * _legend_rows(list(block.parts)), parts, block.title)


def matrix(block: Matrix) -> str:
    """A confusion: true labels down, found ones across; the shade is the share of the row."""
    labels, counts = block.confusion.labels, block.confusion.counts
    left, top = 130, 60
    parts = [_text(left, 14, "found →, true ↓")]
    for column, label in enumerate(labels):
        parts.append(_text(left + CELL * (column + 0.5), top - 8, _short(label), "middle"))
    for row, label in enumerate(labels):
        height = top + ROW * row
        parts.append(_text(left - 8, height + 20, _short(label, 14), "end"))
        total = sum(counts[row])
        for column, count in enumerate(counts[row]):
            part = count / total if total else 0.0
            tip = f"<title>{escape(f'{label} taken for {labels[column]}: {count}')}</title>"
            ink = "#fff" if part > 0.55 else "#222"
            parts.append(
                f'<rect x="{left + CELL * column}" y="{height}" width="{CELL - 2}" '
                f'height="{ROW - 2}" fill="#3b6ea5" fill-opacity="{0.06 + 0.94 * part:.2f}">'
                f"{tip}</rect>"
                f'<text x="{left + CELL * (column + 0.5):.1f}" y="{height + 20}" fill="{ink}" '
                f'text-anchor="middle" font-size="12">{count or ""}</text>'
            )
    return _svg(top + ROW * len(labels) + 8, parts, block.title, left + CELL * len(labels) + 8)


def _short(label: str, most: int = 8) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _round_up(value: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _grid(top: float, bottom: int, unit: str) -> list[str]:
    lines = []
    for part in range(5):
        height = bottom - BAR_HEIGHT * part / 4
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
        )
        lines.append(_text(LEFT - 6, height + 4, f"{top * part / 4:g}", "end"))
    return [*lines, _text(4, 12, unit)]


def _whisker(x: float, low: float, high: float) -> str:
    strokes = (f"M{x:.1f} {low:.1f}V{high:.1f}", f"M{x - 4:.1f} {low:.1f}h8",
               f"M{x - 4:.1f} {high:.1f}h8")  # fmt: skip
    return f'<path d="{"".join(strokes)}" stroke="currentColor" fill="none"/>'


def _legend_rows(names: list[str]) -> int:
    return len(_legend_places(names)[-1:]) and _legend_places(names)[-1][1] + 1


def _legend_places(names: list[str]) -> list[tuple[float, int]]:
    """Where each name stands: x and the number of its line."""
    places, x, row = [], float(LEFT), 0
    for name in names:
        width = 30 + 7.2 * len(name)
        if x + width > WIDTH and x > LEFT:
            x, row = float(LEFT), row + 1
        places.append((x, row))
        x += width
    return places


def _legend(names: list[str], top: float) -> list[str]:
    parts = []
    for number, (name, (x, row)) in enumerate(zip(names, _legend_places(names), strict=True)):
        y = top + 18 * row
        parts.append(f'<rect x="{x:.1f}" y="{y - 9}" width="11" height="11" '
                     f'fill="{colour(number)}"/>')
        parts.append(_text(x + 16, y + 1, name))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" '
            f'fill="currentColor">{escape(text)}</text>')


def _svg(height: float, parts: list[str], title: str, width: float = WIDTH) -> str:
    return (f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>')
