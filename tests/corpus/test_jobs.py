"""Claims about long jobs: stopped anywhere and started again, the output is the same."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from osum_echat.corpus.jobs import Job, Made, in_order, plan_of, run
from osum_echat.data.sources import Dropped
from osum_echat.errors import InputError
from osum_echat.files import whole_file
from tests.corpus.reading import shards, write_noise, write_raw


def double(number: int) -> Made:
    """Lines for a number; odd hundreds are left out."""
    if number % 100 == 99:
        return Made([], [Dropped("ninety-nine", str(number))])
    return Made([str(2 * number)])


def failing(stop: int, seen: list[int], number: int) -> Made:
    """As `double` until it breaks."""
    if number == stop:
        raise RuntimeError("the power went")
    seen.append(number)
    return double(number)


@pytest.mark.parametrize("stop", [0, 1, 7, 99])
def test_a_stopped_job_goes_on_and_ends_as_one_that_was_not(tmp_path: Path, stop: int):
    whole = run(Job(tmp_path / "whole", "plan"), double, range(100), "numbers")
    job = Job(tmp_path / "out", "plan")
    with pytest.raises(RuntimeError):
        run(job, partial(failing, stop, []), range(100), "numbers")
    assert not job.out.exists()
    seen: list[int] = []
    report = run(job, partial(failing, -1, seen), range(100), "numbers")
    assert seen == list(range(stop, 100))
    assert job.out.read_text() == (tmp_path / "whole").read_text()
    assert (report.written, report.dropped) == (whole.written, whole.dropped) == (
        99, {"ninety-nine": 1}
    )  # fmt: skip
    assert {one.name for one in tmp_path.iterdir()} == {
        "out", "out.report.json", "whole", "whole.report.json"
    }  # fmt: skip


@pytest.mark.parametrize("torn", [b'{"lines": ["12"', b'{"lines": ["99"], "dropped": []', b""])
def test_a_torn_last_line_of_the_journal_is_made_again(tmp_path: Path, torn: bytes):
    job = Job(tmp_path / "out", "plan")
    with pytest.raises(RuntimeError):
        run(job, partial(failing, 5, []), range(10), "numbers")
    with (tmp_path / ".out.journal").open("ab") as journal:
        journal.write(torn)
    run(job, double, range(10), "numbers")
    assert job.out.read_text().split() == [str(2 * number) for number in range(10)]


def test_a_finished_job_is_left_as_it_is_until_its_input_changes(tmp_path: Path):
    seen: list[int] = []
    job = Job(tmp_path / "out", "plan")
    for _ in range(2):
        run(job, partial(failing, -1, seen), range(5), "numbers")
    assert len(seen) == 5
    run(Job(tmp_path / "out", "other plan"), partial(failing, -1, seen), range(5), "numbers")
    run(Job(tmp_path / "out", "other plan", overwrite=True), partial(failing, -1, seen),
        range(5), "numbers")  # fmt: skip
    assert len(seen) == 15


def test_an_unfinished_job_of_another_plan_is_begun_anew(tmp_path: Path):
    with pytest.raises(RuntimeError):
        run(Job(tmp_path / "out", "old"), partial(failing, 5, []), range(10), "numbers")
    seen: list[int] = []
    run(Job(tmp_path / "out", "new"), partial(failing, -1, seen), range(10), "numbers")
    assert seen == list(range(10))


def test_what_has_gone_since_is_made_again(tmp_path: Path):
    job = Job(tmp_path / "out", "plan")
    run(job, double, range(5), "numbers")
    seen: list[int] = []
    run(job, partial(failing, -1, seen), range(5), "numbers", lambda line: line != "4")
    assert len(seen) == 5


def test_a_plan_changes_with_a_setting_and_with_the_content_of_a_file(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("one")
    first = plan_of(file=path, number=1)
    assert first == plan_of(number=1, file=path)
    assert first != plan_of(file=path, number=2)
    path.write_text("two")
    assert first != plan_of(file=path, number=1)
    with pytest.raises(InputError, match="check the path"):
        plan_of(file=tmp_path / "gone")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "sub" / "a"
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with whole_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(InputError, match="not written"), whole_file(path / "b") as file:
        pass


def end_itself(number: int) -> int:
    """What the kernel does to a process that takes too much memory."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_several_processes_give_the_same_order_and_tell_of_a_killed_one():
    assert list(in_order(abs, range(-50, 0), 2)) == list(range(50, 0, -1))
    with pytest.raises(InputError, match="fewer workers"):
        list(in_order(end_itself, range(10), 2))


@pytest.mark.slow
def test_a_killed_conversion_loses_nothing(tmp_path: Path):
    for number in range(40):
        write_noise(tmp_path / f"{number}.wav", seconds=8.0, rate=44_100)
    raw = write_raw(
        tmp_path,
        [{"key": f"k{number}", "wav": f"{number}.wav", "txt": "x"} for number in range(40)],
    )
    shards(raw, tmp_path / "whole", "--per-tar", "2")
    out = tmp_path / "out"
    command = [sys.executable, "common_utils/make_shard_from_raw.py", str(raw), str(out),
               "--per-tar", "2", "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True)
    journal = out / ".shards_list.txt.journal"
    give_up = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "shards_list.txt").exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert subprocess.run(command, check=True, capture_output=True).returncode == 0
    for tar in sorted((tmp_path / "whole").glob("*.tar")):
        assert (out / tar.name).read_bytes() == tar.read_bytes()
    assert json.loads((out / "shards_list.txt.report.json").read_text())["written"] == 40
    assert 0 < done < 20
    assert not list(out.glob(".*"))
