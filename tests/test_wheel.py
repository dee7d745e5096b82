"""Claims about the wheel: every file is in it, its command and its public names are found."""

import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import osum_echat
from osum_echat import __main__ as door
from osum_echat.paths import HOUSE
from osum_echat.records import Utterance

NEEDED = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
TREES = ("osum_echat", "common_utils", "conf")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, without a network: a build leaves folders beside its sources."""
    place = tmp_path_factory.mktemp("wheel")
    for name in NEEDED:
        shutil.copy(HOUSE / name, place / name)
    for name in TREES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HOUSE / name, place / name, symlinks=True, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps",
         "--no-index", "--wheel-dir", str(place / "out"), str(place)],
        check=True,
    )  # fmt: skip
    (path,) = (place / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_file_of_the_packages_and_the_command_are_in_the_wheel(wheel):
    wanted = {
        (Path("osum_echat") / path.relative_to(HOUSE) if tree == "conf"
         else path.relative_to(HOUSE)).as_posix()
        for tree in TREES for path in (HOUSE / tree).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert {"osum_echat/conf/prompt_config.yaml", "osum_echat/serving/live.js",
            "osum_echat/evaluation/report.html"} <= wanted  # fmt: skip
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert wanted - found == set() and found - wanted == set()
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    kind, line = wheel.read(name).decode().split("\n")[:2]
    assert kind == "[console_scripts]"
    command, value = line.split(" = ")
    assert command == "osum-echat"
    assert EntryPoint(command, value, "console_scripts").load() is door.main


@pytest.mark.parametrize("name", door.COMMANDS)
def test_each_command_has_options_and_does_what_they_say(name):
    command = import_module(door.COMMANDS[name][0])
    assert callable(command.run) and command.parser().format_usage()


def test_without_a_command_it_asks(capsys):
    assert door.main(["--model", "no/model", "--text", "Hi.", "--task", "t2t"]) == 2
    assert "osum-echat ask: no/model: no such model directory" in capsys.readouterr().err
    assert door.main(["--help"]) == 0 and "evaluate" in capsys.readouterr().out


def test_the_public_names_are_found_late():
    assert osum_echat.Utterance is Utterance
    assert set(osum_echat.__all__) == {"EChat", "Reply", "Turn", "Utterance"}
    with pytest.raises(AttributeError, match="no attribute 'Whisper'"):
        osum_echat.Whisper  # noqa: B018
