"""Claims about what people open, in a real browser without a network: it is all there and works."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osum_echat.evaluation import gallery, listening_test, options
from osum_echat.evaluation.start import run_suite
from tests.browsing import chromium
from tests.evaluation.spoken import Spoken, arguments, model, write_queries

pytestmark = pytest.mark.slow
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an echat_eval run wrote."""
    folder = tmp_path_factory.mktemp("pages")
    data = write_queries(folder / "d")
    run_suite("echat_eval", arguments("echat_eval", data, folder / "run"), model(Spoken()))
    return folder


def test_the_report_shows_its_tables_pictures_and_sounds(run: Path, tab: Open) -> None:
    page = tab(run / "run" / "report.html")
    assert page.title() == "EChat-eval"
    assert page.locator("table").count() >= 5 and "OSUM-EChat (paper)" in page.content()
    for picture in page.locator("svg").all():
        box = picture.bounding_box()
        assert box is not None and box["width"] > 100 and box["height"] > 30
    lengths = page.evaluate(SOUNDS_JS)
    assert len(lengths) == 16 and all(0.3 < seconds < 0.6 for seconds in lengths)
    assert page.evaluate(WIDER_JS) <= 0


def test_the_gallery_plays_every_sound(run: Path, tab: Open) -> None:
    asked = ["gallery", "--from", str(run / "run"), "--out", str(run / "show")]
    gallery.run(options.parser().parse_args(asked))
    page = tab(run / "show" / "index.html")
    assert page.locator("h2").count() == 4
    lengths = page.evaluate(SOUNDS_JS)
    assert len(lengths) >= 8 and min(lengths) > 0.3
    assert page.evaluate(WIDER_JS) <= 0


def test_a_rater_listens_rates_comes_back_and_saves_what_can_be_scored(
    run: Path, tab: Open, tmp_path: Path
) -> None:
    asked = ["human", "--make", f"Alpha={run / 'run'}", "--out", str(tmp_path / "test"),
             "--items", "2"]  # fmt: skip
    listening_test.run(options.parser().parse_args(asked))
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
    scored = ["human", "--score", str(path), "--out", str(tmp_path / "test")]
    listening_test.run(options.parser().parse_args(scored))
    measures = json.loads((tmp_path / "test" / "scores.json").read_text())["measures"]
    assert {one["value"] for name, one in measures.items() if name.startswith("Alpha")} == {85.0}
