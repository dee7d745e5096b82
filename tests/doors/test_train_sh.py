"""Claims about train.sh: what it says, what it refuses, and whole chains of stages."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from osum_echat.training.state import newest
from tests.training.experiment import write_experiment

ROOT = Path(__file__).parents[2]


ENVIRONMENT = {
    **os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "train.sh"), *arguments],
        capture_output=True, text=True, env=ENVIRONMENT | settings, timeout=500, check=False,
    )  # fmt: skip


def test_what_cannot_be_started_is_told_in_a_line(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# machines\nnowhere.invalid slots=2\n")
    for arguments, settings, said in (
        (["absent.yaml"], {}, "absent.yaml: no such config in /"),
        (["all", "conf/tiny"], {"HOSTFILE": str(hosts)}, "is not in it; set NODE_RANK"),
        (["conf/tiny/stage0_text.yaml"], {"NPROC": "1", "NNODES": "2"}, "set MASTER_ADDR"),
    ):
        ended = run(*arguments, **settings)
        assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


def test_every_line_of_a_host_file_is_a_machine(tmp_path):
    hosts, python = tmp_path / "hosts", tmp_path / "python"
    hosts.write_bytes(b"one.invalid slots=2\r\ntwo.invalid slots=2")
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    ended = run("conf/tiny/stage0_text.yaml", HOSTFILE=str(hosts), NODE_RANK="1", NPROC="2",
                PYTHON=str(python))  # fmt: skip
    assert "--nnodes 2 --node_rank 1 --master_addr one.invalid" in ended.stdout, ended.stderr


def test_every_file_that_it_names_is_there():
    words = (ROOT / "train.sh").read_text().replace("(", " ").replace(",", " ").split()
    named = {word for word in words if word.startswith("conf/") and "." in word}
    assert "all FOLDER" in run("--help").stdout
    assert named and all((ROOT / word.rstrip(".;)")).exists() for word in named), named


def test_stages_run_by_name_and_only_the_first_starts_from_what_is_given(tmp_path):
    for name in ("stage1b_c", "stage1_z", "stage0_b"):
        (tmp_path / f"{name}.yaml").touch()
    python = tmp_path / "python"
    words = f'case "$*" in -m*) echo 1 ;; *) echo "$*" >> {tmp_path}/said ;; esac'
    python.write_text(f"#!/bin/sh\n{words}\n")
    python.chmod(0o755)
    started = run("all", str(tmp_path), "init=X", "run.steps=2", PYTHON=str(python),
                  LC_ALL="en_US.UTF-8")  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert (tmp_path / "said").read_text().splitlines() == [
        f"train.py --config {tmp_path}/stage0_b.yaml init=X run.steps=2",
        f"train.py --config {tmp_path}/stage1_z.yaml run.steps=2",
        f"train.py --config {tmp_path}/stage1b_c.yaml run.steps=2",
    ]
    for word, said in (("output=Y", "the output of every stage"), ("", "holds no stage")):
        ended = run("all", str(tmp_path if word else tmp_path / "none"), *([word] if word else []))
        assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_chain_goes_through_its_stages_and_skips_what_is_done(tmp_path, processes):
    first = write_experiment(tmp_path)
    raw = yaml.safe_load(first.read_text())
    shutil.move(first, tmp_path / "stage1_first.yaml")
    raw |= {"init": str(tmp_path / "out" / "final"), "output": str(tmp_path / "next")}
    del raw["model"], raw["tokenizer"]
    (tmp_path / "stage1b_second.yaml").write_text(yaml.safe_dump(raw))
    done = run("all", str(tmp_path), "run.steps=2", NPROC=processes)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "next" / "final" / "model.yaml").is_file()
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    again = run("all", str(tmp_path), "run.steps=2", NPROC=processes)
    assert again.returncode == 0 and again.stderr.count("already finished at step 2") == 2
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_to_it_reaches_the_training_which_saves_and_ends(tmp_path, processes):
    path = write_experiment(tmp_path, run={"steps": 100_000})
    metrics = tmp_path / "out" / "metrics.jsonl"
    running = subprocess.Popen(
        ["bash", str(ROOT / "train.sh"), str(path)], env=ENVIRONMENT | {"NPROC": processes}
    )
    limit = time.monotonic() + 400
    while not metrics.exists() and time.monotonic() < limit:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    assert running.wait(200) == 128 + signal.SIGTERM
    assert newest(tmp_path / "out") is not None
