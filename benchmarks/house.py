"""How large the project is, and how many files a run walks through.

python -m benchmarks.house size
python -m benchmarks.house walks
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.paths import FAKE_DATA, HOUSE, TINY

PACKAGE = HOUSE / "osum_echat"
ENDINGS = (".py", ".js", ".css", ".html")
GOALS = {                               # files and lines at most
    "osum_echat": (95, 16_500), "common_utils": (None, 6_500),
    "benchmarks": (None, 3_500), "tests": (None, 11_000),
}  # fmt: skip
WALKS = {"tar member to loss": 20, "wav to reply": 26}      # package files at most
QUESTION = TINY / "samples" / "question.wav"
EXPERIMENT = """
output: {output}
init: {model}
stage: {{train: [adapter]}}
schedule: {{kind: constant, rate: 1.0e-4}}
run: {{steps: 1, minutes: 0, check_steps: 0}}
data: {{row_tokens: 512, rows: 1, workers: 0, prefetch: 0, lists: {{fake: {{path: {list}}}}}}}
"""


def size() -> None:
    """Print files and lines of each top folder that git knows, beside their goals."""
    told = subprocess.run(
        ["git", "ls-files", *GOALS], cwd=HOUSE, capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise InputError(f"{HOUSE}: {told.stderr.strip()}; size is counted in a clone")
    paths = [Path(name) for name in told.stdout.splitlines() if name.endswith(ENDINGS)]
    logs.out(f"{'':14}{'files':>7}{'goal':>7}{'lines':>9}{'goal':>9}")
    for folder, (most_files, most_lines) in GOALS.items():
        own = [path for path in paths if path.parts[0] == folder and (HOUSE / path).is_file()]
        lines = sum((HOUSE / path).read_bytes().count(b"\n") for path in own)
        logs.out(f"{folder:14}{len(own):7}{most_files or '':>7}{lines:9,}{most_lines:9,}")


def walks() -> None:
    """Print the package's files that are entered from a tar member to the loss, wav to reply."""
    found = {"tar member to loss": to_loss(), "wav to reply": to_reply()}
    for name, files in found.items():
        logs.out(f"{name}: {len(files)} files (goal: {WALKS[name]})")
        for file in files:
            logs.out(f"  {file}")


def to_loss() -> list[str]:
    """Files entered while a trained step is made from tars, the model loaded before."""
    from osum_echat.training import experiment, trainer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        tars = FAKE_DATA / "shard" / "shards_list.txt"
        path.write_text(
            EXPERIMENT.format(output=Path(folder) / "out", model=TINY, list=tars), encoding="utf-8"
        )
        training = trainer.Trainer(experiment.load(str(path)))
        with traced() as files:
            training.engine.step([next(training.batches)], 1e-4)
    return files


def to_reply() -> list[str]:
    """Files entered while a question is answered in speech, the model loaded before."""
    from osum_echat import EChat

    assistant = EChat.load(TINY)
    with traced() as files:
        assistant.reply(QUESTION, task="s2s_think")
    return files


@contextmanager
def traced() -> Iterator[list[str]]:
    """A list that holds, when the block ends, the package's files entered in it, in order."""
    files: list[str] = []
    seen: set[str] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name not in seen:
            seen.add(name)
            path = Path(name)
            if path.is_relative_to(PACKAGE) and path.name != "__init__.py":
                files.append(str(path.relative_to(HOUSE)))

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = argparse.ArgumentParser(prog="benchmarks.house", description=__doc__)
    works: dict[str, Callable[[], None]] = {"size": size, "walks": walks}
    parser.add_argument("what", choices=works)
    arguments = parser.parse_args(argv)
    return cli.run("benchmarks.house", works[arguments.what])


if __name__ == "__main__":
    sys.exit(main())
