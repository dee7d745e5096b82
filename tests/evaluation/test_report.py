"""Claims about the report: it stands alone, shows every block, and nothing in it can run."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation import paper, pictures, report
from osum_echat.evaluation.report import Page
from osum_echat.evaluation.results import (
    Bars,
    Clip,
    Matrix,
    Measure,
    Players,
    Stack,
    Table,
    Words,
    mean,
    percentile,
    share,
)  # fmt: skip
from osum_echat.metrics import Confusion
from tests.evaluation.spoken import write_wav

EVIL = '<script>alert(1)</script>"&'
MEASURE = Measure(50.0, "%", 4, 40.0, 60.0)


def page(tmp_path, text: str = "hello") -> Page:
    wav = write_wav(tmp_path / "a.wav")
    confusion = Confusion.of([("SAD", "SAD"), ("SAD", "HAPPY"), (text, None)])
    blocks = [
        Words(text), Table(text, (text, "b"), [[text, MEASURE], ["x", None]], text),
        Bars(text, [text, "c"], {text: [MEASURE, None]}, "%"),
        Stack(text, [text, "b"], {text: [0.5, 1.0]}), Matrix(text, confusion),
        Players(text, [Clip(text, {text: wav}, {text: text})]),
    ]  # fmt: skip
    return Page(text, blocks, {"model": text}, {"torch": text})


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path):
    html = report.html(page(tmp_path, EVIL))
    assert "<script" not in html and "onerror" not in html
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert links and all(link.startswith("data:audio/wav;base64,") for link in links)


def test_html_and_markdown_show_the_same_figures(tmp_path):
    report.write(page(tmp_path), tmp_path)
    html, words = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "[40.00, 60.00]" in html and "[40.00, 60.00]" in words
    assert "| x | - |" in words and html.count("<svg") == 3 and html.count("<audio") == 1
    assert "- model: hello" in words


def test_every_picture_is_well_formed(tmp_path):
    for block in page(tmp_path, EVIL).blocks:
        if isinstance(block, Bars | Stack | Matrix):
            draw = {Bars: pictures.bars, Stack: pictures.stack, Matrix: pictures.matrix}
            assert ElementTree.fromstring(draw[type(block)](block)).tag.endswith("svg")


def test_a_bar_is_as_high_as_its_value():
    drawn = pictures.bars(Bars("t", ["a", "b"], {"s": [Measure(100.0), Measure(25.0)]}))
    heights = [float(one) for one in re.findall(r'height="([0-9.]+)" fill="#3b6ea5">', drawn)]
    assert heights == [220.0, 55.0]


def test_bars_and_stacks_of_nothing_are_drawn_too():
    assert pictures.bars(Bars("t", ["a"], {"s": [None]})).startswith("<svg")
    assert pictures.stack(Stack("t", ["a"], {"s": [0.0]})).startswith("<svg")


def test_a_sound_that_is_missing_or_too_long_or_none_is_told(tmp_path):
    with pytest.raises(InputError, match="it is needed for the report"):
        report.data_uri(tmp_path / "absent.wav")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no sound that a page can hold"):
        report.data_uri(tmp_path / "a.txt")


def test_own_rows_stand_below_the_papers_and_are_marked():
    table = paper.ECHAT_EVAL.beside([("ours", [MEASURE] * 5)])
    assert table.rows[-1][0] == "ours" and table.own == {len(table.rows) - 1}
    assert '<tr class="own"><td>ours' in report.html_of(table)


@pytest.mark.parametrize("printed", [
    paper.ECHAT_EVAL, paper.HUMAN, paper.VOICEBENCH, paper.TTS], ids=lambda one: one.title)
def test_a_table_of_the_paper_has_a_figure_for_each_column(printed):
    assert all(len(row) == 1 + len(printed.columns) for row in printed.rows)


def test_the_papers_overall_is_the_mean_of_its_sets():
    *_, own = paper.VOICEBENCH.rows
    figures = [value * (20 if place < 2 else 1) for place, value in enumerate(own[1:-1])]
    assert sum(figures) / 7 == pytest.approx(own[-1], abs=0.01)


def test_means_have_intervals_and_percentiles_lie_between():
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5 and found.low < 2.5 < found.high and found.count == 4
    assert mean([]).value is None and mean([3.0]).low is None
    assert share([True, False]).value == 50
    assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5 and percentile([], 50) is None
    assert percentile([1.0, 2.0], 90) == pytest.approx(1.9)
