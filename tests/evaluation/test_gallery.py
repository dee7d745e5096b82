"""Claims about the gallery: players by category on one page that stands alone."""

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation import gallery, options
from osum_echat.evaluation.start import run_suite
from tests.evaluation.spoken import Spoken, arguments, model, write_queries


def run(folder, *more):
    asked = ["gallery", "--from", str(folder / "run"), "--out", str(folder / "show"), *more]
    return gallery.run(options.parser().parse_args(asked))


def test_the_page_has_a_section_a_category_and_its_players(tmp_path):
    data = write_queries(tmp_path / "d")
    run_suite("echat_eval", arguments("echat_eval", data, tmp_path / "run"), model(Spoken()))
    assert run(tmp_path, "--each", "1", "--title", "Show <me>").endswith("4 sections")
    page = (tmp_path / "show" / "index.html").read_text()
    assert "Show &lt;me&gt;" in page and page.count("<audio") == 4 * 2
    for title in ("Emotion", "Age and gender", "Sound events", "Several cues at once"):
        assert f">{title}</h2>" in page
    assert "http" not in page and "I lost kite 0" in page


def test_a_folder_of_something_else_is_told(tmp_path):
    with pytest.raises(InputError, match="not what echat_eval wrote"):
        run(tmp_path)
