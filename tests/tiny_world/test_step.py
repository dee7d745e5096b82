"""Claims about a recipe's steps: done once, their time added up, a signal handed on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common_utils.tiny_world import step
from common_utils.tiny_world.step import Book, Entry

ROOT = Path(__file__).parents[2]


def script(text: str, *words: str) -> list[str]:
    return [sys.executable, "-c", text, *words]


def call(book: Path, name: str, words: list[str], makes: Path | None = None) -> int:
    more = [] if makes is None else [f"--makes={makes}"]
    return step.main([f"--book={book}", *more, name, "--", *words])


def counting(path: Path) -> list[str]:
    """Adds a letter to a file each time it runs."""
    return script("import sys; open(sys.argv[1], 'a').write('x')", str(path))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    book, made = tmp_path / "steps.json", tmp_path / "made"
    for _ in range(3):
        assert call(book, "first", counting(made), made) == 0
    assert made.read_text() == "x"
    made.unlink()
    assert call(book, "first", counting(made), made) == 0
    assert made.read_text() == "x"


def test_what_lies_behind_a_step_that_ran_again_runs_too(tmp_path: Path) -> None:
    book, one, two = tmp_path / "steps.json", tmp_path / "one", tmp_path / "two"
    for changed in ("", "", "-X utf8"):
        first = counting(one)
        first[1:1] = changed.split()
        assert call(book, "first", first) == call(book, "second", counting(two)) == 0
    assert (one.read_text(), two.read_text()) == ("xx", "xx")


def test_the_time_of_all_runs_is_added_up(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    book = Book(path)
    book.steps["first"] = Entry(("other",), seconds=100.0)
    book.save()
    assert call(path, "first", script("import sys; sys.exit(3)")) == 3
    entry = Book(path).steps["first"]
    assert 100.0 < entry.seconds < 110.0 and not entry.done


def test_a_step_that_makes_nothing_is_told(tmp_path: Path, capsys) -> None:
    assert call(tmp_path / "steps.json", "first", script(""), tmp_path / "made") == 2
    assert "made is not there" in capsys.readouterr().err


def test_a_signal_reaches_the_command_and_the_time_is_kept(tmp_path: Path) -> None:
    book, begun, ended = tmp_path / "steps.json", tmp_path / "begun", tmp_path / "ended"
    text = (
        "import signal, sys, time, pathlib\n"
        "def end(*_): pathlib.Path(sys.argv[2]).touch(); sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)"
    )
    words = [sys.executable, "-m", "common_utils.tiny_world.step", f"--book={book}", "first", "--",
             *script(text, str(begun), str(ended))]  # fmt: skip
    running = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    limit = time.monotonic() + 50
    while not begun.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert running.wait(50) == 5 and ended.exists()
    entry = json.loads(book.read_text())["first"]
    assert entry["seconds"] > 0 and not entry["done"]
