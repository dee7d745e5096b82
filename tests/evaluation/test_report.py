"""Claims about what people open: pages stand alone, show every block, and ratings are summed."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation import __main__ as door
from osum_echat.evaluation import listening_test, report
from osum_echat.evaluation.report import Clip, Measure, Page, Players, Table
from osum_echat.metrics import Confusion
from tests.browsing import chromium
from tests.evaluation.spoken import Spoken, scored, write_queries, write_wav

EVIL = '<script>alert(1)</script>"&'
MEASURE = Measure(50.0, "%", 4, 40.0, 60.0)


def page(tmp_path, text: str = "hello") -> Page:
    wav = write_wav(tmp_path / "a.wav")
    confusion = Confusion.of([("SAD", "SAD"), ("SAD", "HAPPY"), (text, None)])
    blocks = [text, Table(text, (text, "b"), [[text, MEASURE], ["x", None]], text, whole=100),
              report.confusion_table(text, confusion),
              Players(text, [Clip(text, {text: wav}, {text: text})])]  # fmt: skip
    return Page(text, blocks, {"model": text}, {"torch": text})


def test_a_page_runs_nothing_and_html_and_markdown_show_the_same_figures(tmp_path):
    html = report.html(page(tmp_path, EVIL))
    assert "<script" not in html and "onerror" not in html
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert links and all(one.startswith(("data:", "#")) for one in links)
    report.write(page(tmp_path), tmp_path)
    html, words = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "[40.00, 60.00]" in html and "[40.00, 60.00]" in words
    assert "| x | - |" in words and html.count("<audio") == 1
    assert html.count('style="--bar:50.0%"') == 3 and "| SAD (2) | 50.00 | 0.00 | 50.00 |" in words
    assert "- model: hello" in words


def listen(*argv: object) -> str:
    """`human` or `gallery` of the door."""
    return listening_test.run(door.parser().parse_args(list(map(str, argv))))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of echat_eval, a listening test of both, and its key."""
    folder = tmp_path_factory.mktemp("human")
    data = write_queries(folder / "d")
    for name, seed in (("first", "0"), ("second", "1")):
        scored("echat_eval", data, folder / name, Spoken(), "--seed", seed)
    listen("human", "--make", f"Alpha={folder / 'first'}", f"Beta={folder / 'second'}",
           "--out", folder / "test", "--items", 3)  # fmt: skip
    return folder, json.loads((folder / "test" / "key.json").read_text())


def ratings(folder, key, name, rate):
    values = {f"{slot}/{place}": rate(one["system"], place)
              for slot, one in key["slots"].items() for place in range(3)}  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"test": key["test"], "rater": name, "ratings": values}))
    return path


def score(folder, *paths):
    listen("human", "--score", *paths, "--out", folder / "test")
    return json.loads((folder / "test" / "scores.json").read_text())["measures"]


def test_the_page_is_blind_and_asks_for_nothing_from_outside(made):
    folder, key = made
    page = (folder / "test" / "test.html").read_text()
    assert "Alpha" not in page and "Beta" not in page and "http" not in page
    assert page.count('type="range"') == 3 * 2 * 3 and page.count("<audio") == 3 * 3
    assert set(re.findall(r'name="(\d[A-B])/', page)) == set(key["slots"])


def test_raters_that_agree_give_their_means_and_other_files_are_refused(made):
    folder, key = made
    paths = [ratings(folder, key, name, lambda system, place: 80 if system == "Alpha" else 40)
             for name in ("one", "two")]  # fmt: skip
    found = score(folder, *paths)
    assert found["Alpha/all"]["value"] == 80 and found["Beta/natural speech"]["value"] == 40
    assert found["Alpha/all"]["count"] == 2 * 3 * 3 and found["agreement"]["value"] == 1.0
    with pytest.raises(InputError, match="ratings of test another"):
        score(folder, ratings(folder, key | {"test": "another"}, "other", lambda *_: 50))
    with pytest.raises(InputError, match="is 500; need one of the page's sliders"):
        score(folder, ratings(folder, key, "wild", lambda *_: 500))


def test_alpha_is_that_of_krippendorffs_example():
    """Krippendorff 2011, section D: four observers, twelve units, interval data: 0.849."""
    rows = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .",
            "1 2 3 3 2 4 4 1 2 5 1 .")  # fmt: skip
    raters = [{str(unit): float(value) for unit, value in enumerate(row.split()) if value != "."}
              for row in rows]  # fmt: skip
    assert listening_test.alpha(raters) == pytest.approx(0.849, abs=0.001)
    assert listening_test.alpha(raters[:1]) is None


def test_the_gallery_has_a_section_a_category_and_its_players(made, tmp_path):
    assert listen("gallery", "--from", made[0] / "first", "--out", tmp_path / "show", "--each", 1,
                  "--title", "Show <me>").endswith("4 sections")  # fmt: skip
    page = (tmp_path / "show" / "index.html").read_text()
    assert "Show &lt;me&gt;" in page and page.count("<audio") == 4 * 2
    for title in ("Emotion", "Age and gender", "Sound events", "Several cues at once"):
        assert f">{title}</h2>" in page
    assert "http" not in page and "I lost kite 0" in page


SOUNDS_JS = """() => Promise.all([...document.querySelectorAll('audio')].map((sound) =>
    new Promise((done) => { sound.addEventListener('loadedmetadata', () => done(sound.duration));
    sound.addEventListener('error', () => done(-1)); sound.preload = 'auto'; sound.load(); })))"""
WIDER_JS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
Open = Callable[[Path], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(params=[(1200, 900), (390, 800)], ids=["desk", "phone"])
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a file offline; it may ask for nothing else, and nothing in it may fail."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    asked: list[str] = []
    faults: list[str] = []

    def opened(path: Path) -> Any:
        page = context.new_page()
        page.on("request", lambda one: asked.append(one.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda one: one.type == "error" and faults.append(one.text))
        page.goto(path.resolve().as_uri())
        return page

    yield opened
    context.close()
    assert not faults
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.slow
def test_the_report_and_the_gallery_show_their_tables_and_play_every_sound(made, tab, tmp_path):
    page = tab(made[0] / "first" / "report.html")
    assert page.title() == "EChat-eval"
    assert page.locator("table").count() >= 5 and "OSUM-EChat (paper)" in page.content()
    assert page.locator("td[style]").count() > 10
    lengths = page.evaluate(SOUNDS_JS)
    assert len(lengths) == 16 and all(0.3 < seconds < 0.6 for seconds in lengths)
    assert page.evaluate(WIDER_JS) <= 0
    listen("gallery", "--from", made[0] / "first", "--out", tmp_path / "show")
    page = tab(tmp_path / "show" / "index.html")
    lengths = page.evaluate(SOUNDS_JS)
    assert page.locator("h2").count() == 4 and len(lengths) >= 8 and min(lengths) > 0.3
    assert page.evaluate(WIDER_JS) <= 0


@pytest.mark.slow
def test_a_rater_listens_rates_comes_back_and_saves_what_can_be_scored(made, tab, tmp_path):
    listen("human", "--make", f"Alpha={made[0] / 'first'}", "--out", tmp_path / "test",
           "--items", 2)  # fmt: skip
    page = tab(tmp_path / "test" / "test.html")
    assert min(page.evaluate(SOUNDS_JS)) > 0.3
    sliders = page.locator("input[type=range]")
    assert page.locator("#done").inner_text() == f"0 of {sliders.count()}"
    for slider in sliders.all():
        slider.fill("85")
    page.reload()
    assert page.locator("#done").inner_text() == f"{sliders.count()} of {sliders.count()}"
    assert sliders.first.input_value() == "85" and page.evaluate(WIDER_JS) <= 0
    page.locator("#rater").fill("rater 1")
    with page.expect_download() as saved:
        page.locator("#save").click()
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    assert path.name == "ratings-rater_1.json"
    measures = score(tmp_path, path)
    assert {one["value"] for name, one in measures.items() if name.startswith("Alpha")} == {85.0}
