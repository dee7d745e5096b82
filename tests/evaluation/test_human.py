"""Claims about the listening test: it is blind, stands alone, and ratings are summed rightly."""

import json
import re

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation import listening_test, options
from osum_echat.evaluation.start import run_suite
from tests.evaluation.spoken import Spoken, arguments, model, write_queries


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A test of two systems, and its key."""
    folder = tmp_path_factory.mktemp("human")
    data = write_queries(folder / "d")
    for name, seed in (("first", "0"), ("second", "1")):
        given = arguments("echat_eval", data, folder / name, "--thinking", "label", "--seed", seed)
        run_suite("echat_eval", given, model(Spoken()))
    asked = ["human", "--make", f"Alpha={folder / 'first'}", f"Beta={folder / 'second'}",
             "--out", str(folder / "test"), "--items", "3"]  # fmt: skip
    listening_test.run(options.parser().parse_args(asked))
    return folder, json.loads((folder / "test" / "key.json").read_text())


def ratings(folder, key, name, rate):
    values = {f"{slot}/{place}": rate(one["system"], place)
              for slot, one in key["slots"].items() for place in range(3)}  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"test": key["test"], "rater": name, "ratings": values}))
    return path


def score(folder, *paths):
    asked = ["human", "--score", *map(str, paths), "--out", str(folder / "test")]
    listening_test.run(options.parser().parse_args(asked))
    return json.loads((folder / "test" / "scores.json").read_text())["measures"]


def test_the_page_is_blind_and_asks_for_nothing_from_outside(made):
    folder, key = made
    page = (folder / "test" / "test.html").read_text()
    assert "Alpha" not in page and "Beta" not in page and "http" not in page
    assert page.count('type="range"') == 3 * 2 * 3 and page.count("<audio") == 3 * 3
    assert set(re.findall(r'name="(\d[A-B])/', page)) == set(key["slots"])


def test_every_item_holds_every_system_once_in_an_order_of_its_own(made):
    slots = made[1]["slots"]
    for number in range(3):
        assert {slots[f"{number}{letter}"]["system"] for letter in "AB"} == {"Alpha", "Beta"}
    assert len({slots[f"{number}A"]["item"] for number in range(3)}) == 3


def test_raters_that_agree_give_their_means_and_full_agreement(made):
    folder, key = made
    paths = [ratings(folder, key, name, lambda system, place: 80 if system == "Alpha" else 40)
             for name in ("one", "two")]  # fmt: skip
    found = score(folder, *paths)
    assert found["Alpha/all"]["value"] == 80 and found["Beta/natural speech"]["value"] == 40
    assert found["Alpha/all"]["count"] == 2 * 3 * 3 and found["agreement"]["value"] == 1.0


def test_alpha_is_that_of_krippendorffs_example():
    """Krippendorff 2011, section D: four observers, twelve units, interval data: 0.849."""
    rows = (
        "1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )  # fmt: skip
    raters = [{str(unit): float(value) for unit, value in enumerate(row.split()) if value != "."}
              for row in rows]  # fmt: skip
    assert listening_test.alpha(raters) == pytest.approx(0.849, abs=0.001)
    assert listening_test.alpha(raters[:1]) is None


def test_files_of_another_test_or_out_of_range_are_refused(made):
    folder, key = made
    other = ratings(folder, key | {"test": "another"}, "other", lambda *_: 50)
    with pytest.raises(InputError, match="ratings of test another"):
        score(folder, other)
    wild = ratings(folder, key, "wild", lambda *_: 500)
    with pytest.raises(InputError, match="is 500; need one of the page's sliders"):
        score(folder, wild)


@pytest.mark.parametrize("given, told", [
    (["Alpha"], "write NAME=OUT"), (["A=x", "A=y"], "not what echat_eval wrote"),
])  # fmt: skip
def test_systems_that_cannot_be_used_are_told(tmp_path, given, told):
    with pytest.raises(InputError, match=told):
        listening_test.run(options.parser().parse_args(
            ["human", "--make", *given, "--out", str(tmp_path)]))  # fmt: skip
