"""Claims about the page's door: instant help, clear refusals, limits that reach the page."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import infer_gradio
from osum_echat.serving import app

HOUSE = Path(infer_gradio.__file__).parent


def test_help_is_instant_and_needs_neither_torch_nor_gradio():
    code = ("import sys, infer_gradio\n"
            "try:\n    infer_gradio.main(['--help'])\n"
            "except SystemExit as end:\n    assert end.code == 0\n"
            "assert not {'torch', 'gradio', 'numpy'} & set(sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=HOUSE)  # fmt: skip
    for option in ("--checkpoint-a", "--checkpoint-b", "--token2wav", "--voice", "--share",
                   "--auth", "--port"):  # fmt: skip
        assert option in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--auth", "nobody"), "USER:PASSWORD"), (("--auth", ":secret"), "USER:PASSWORD"),
        (("--port", "99999"), "1 to 65535"), (("--seconds", "-3"), "above 0"),
        (("--at-once", "0"), "from 1"), (("--loud",), "unrecognized"),
    ],
)  # fmt: skip
def test_an_option_of_the_wrong_form_is_explained(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        infer_gradio.main(options)
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--voice", "no/such.wav"), "--voice no/such.wav: no such file"),
        (("--checkpoint-a", "no/model"), "no such model directory"),
    ],
)
def test_what_is_not_there_is_one_line(options, message, capsys):
    assert infer_gradio.main([*options, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_limits_and_the_password_reach_the_server():
    given = app.parser().parse_args(["--auth", "ann:b:c", "--megabytes", "2", "--seconds", "5"])
    assert given.auth == ("ann", "b:c") and (given.megabytes, given.seconds) == (2, 5)


@pytest.mark.slow
def test_the_door_serves_the_page_to_those_with_the_password(model_directory, tmp_path):
    log = tmp_path / "out"
    options = ["--checkpoint-a", str(model_directory), "--device", "cpu", "--auth", "ann:secret"]
    with log.open("w") as out:
        door = subprocess.Popen(
            [sys.executable, "infer_gradio.py", *options], stdout=out, cwd=HOUSE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        address = _address(door, log)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}config", timeout=60)
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
    finally:
        door.terminate()
        door.wait(60)


def _address(door: subprocess.Popen, log: Path) -> str:
    """Where the page is, when it says so."""
    for _ in range(600):
        assert door.poll() is None, log.read_text()
        if "open http" in log.read_text():
            return log.read_text().split()[1]
        time.sleep(0.5)
    raise AssertionError("the page did not open")
