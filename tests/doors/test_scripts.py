"""Claims about doors: what scripts say and pass on, what is in the wheel, where output goes."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

import osum_echat
import train
from common_utils import make_voice
from osum_echat import __main__ as door
from osum_echat import logs
from osum_echat.errors import CheckpointError, InputError
from osum_echat.inference.assistant import EChat
from osum_echat.paths import HOUSE, TINY
from osum_echat.records import Utterance
from osum_echat.token2wav.voice import VoicePrompt
from osum_echat.training.state import newest
from tests.token2wav.tiny_flow import write_published, write_tar
from tests.training.experiment import write_experiment


def test_a_stage_trains_from_the_command(tmp_path):
    path = write_experiment(tmp_path)
    assert train.main(["--config", str(path), "run.steps=1"]) == 0
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(("override", "message"), [
    ("run.step=1", "did you mean 'steps'"),
    ("data.lists.t2t.path=gone.list", "gone.list: no such file"),
    ("output=/dev/null/out", "not written (Not a directory)"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, capsys, override, message):
    path = write_experiment(tmp_path)
    assert train.main(["--config", str(path), override]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1] and errors[-1].startswith("train.py: ")


MADE_OF_LISTS = ("extract_speech_tokens", "make_combine_from_shard", "make_raw_from_hf",
                 "make_raw_from_kaldi", "make_shard_from_raw")  # fmt: skip


@pytest.mark.parametrize(("door", "words", "told"), [
    *((f"common_utils.{name}", "gone out", "gone") for name in MADE_OF_LISTS),
    ("do_test_dataloader", "--config gone.yaml", "gone.yaml"),
    ("do_test_dataloader", "--plot -1", "give 1 or more"),
    ("common_utils.make_voice", "gone.wav --out v.safetensors", "no such file"),
    ("common_utils.make_voice", f"{TINY}/samples/question.wav --model . --out v.safetensors",
     "cannot imitate a voice"),
    ("common_utils.make_raw_from_public", "librispeech nowhere --part test-clean --out a.list",
     "nowhere: no such folder"),
    ("common_utils.make_raw_from_public", "meld . --part test --out a.list", "a table of MELD"),
    ("common_utils.make_raw_from_public", "meld . --part test --task s2s --out a.list",
     "not a task of understanding"),
    ("infer_online", f"--certfile {__file__} --keyfile {__file__}", "cannot be used ("),
    ("infer_gradio", "--voice no/such.wav", "no/such.wav: no such file"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_exit_code_2_and_leaves_nothing(
    door, words, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert import_module(door).main(words.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{door.rpartition('.')[2]}.py: ") and told in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("door", "words", "told"), [
    ("train", "", "--config"), ("infer_runtime", "--threads none", "from 1"),
    ("infer_gradio", "--seconds 0", "above 0"), ("infer_gradio", "--auth nobody", "USER:PASSWORD"),
    ("infer_gradio", "--auth :me", "USER:PASSWORD"), ("infer_gradio", "--at-once 1.5", "above 0"),
    ("infer_online", "--port 99999", "below 65536"),
    ("osum_echat.evaluation.__main__", "lateness", "'lateness'"),
    ("osum_echat.evaluation.batch", "", "--data"), ("common_utils.make_voice", "", "wav"),
    ("common_utils.small_model.ear", "caches --model", "--model"),
])  # fmt: skip
def test_wrong_options_are_one_line_and_exit_code_2(door, words, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        import_module(door).main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and line.endswith("; see --help")


# train.sh

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
               "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip


def run_script(
    script: str, *arguments: object, folder: Path = ROOT, **settings: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / script), *map(str, arguments)], cwd=folder, capture_output=True,
        text=True, env=ENVIRONMENT | settings, timeout=500, check=False,
    )  # fmt: skip


run = partial(run_script, "train.sh")


def test_what_cannot_be_started_is_told_in_a_line(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# machines\nnowhere.invalid slots=2\n")
    for arguments, settings, said in (
        (["absent.yaml"], {}, "absent.yaml: no such config in /"),
        (["all", "conf/tiny"], {"HOSTFILE": str(hosts)}, "is not in it; set NODE_RANK"),
        (["conf/tiny/stage0_text.yaml"], {"NPROC": "1", "NNODES": "2"}, "set MASTER_ADDR"),
        (["conf/tiny/stage0_text.yaml"], {"NPROC": "0"}, "NPROC 0: give a whole number"),
        (["conf/tiny/stage0_text.yaml"], {"NNODES": "two"}, "NNODES two: give a whole number"),
        (["conf/tiny/stage0_text.yaml"], {"NODE_RANK": "1"}, "NODE_RANK 1: give a whole number"),
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


def test_stages_run_by_name_and_only_the_first_starts_from_what_is_given(tmp_path):
    for name in ("stage1b_c", "stage1_z", "stage0_b"):
        (tmp_path / f"{name}.yaml").write_text("data:\n  manifests:\n    t2t: a\n" * ("1b" in name))
    with (tmp_path / "stage1_z.yaml").open("a") as file:
        file.write("device: cpu  # on a machine with cards\n")
    python = tmp_path / "python"
    words = (f'case "$*" in -m*) echo 1; echo "$3" >> {tmp_path}/devices ;; '
             f'*) echo "$*" >> {tmp_path}/said ;; esac')  # fmt: skip
    python.write_text(f"#!/bin/sh\n{words}\n")
    python.chmod(0o755)
    started = run("all", str(tmp_path), "init=X", "data.manifests.t2t=T", "data.manifests.no=N",
                  PYTHON=str(python), LC_ALL="en_US.UTF-8")  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert (tmp_path / "devices").read_text().split() == ["auto", "cpu", "auto"]
    assert (tmp_path / "said").read_text().splitlines() == [
        f"train.py --config {tmp_path}/stage0_b.yaml init=X data.manifests.no=N",
        f"train.py --config {tmp_path}/stage1_z.yaml data.manifests.no=N",
        f"train.py --config {tmp_path}/stage1b_c.yaml data.manifests.t2t=T data.manifests.no=N",
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
    assert running.wait(200) == 128 + signal.SIGTERM and newest(tmp_path / "out") is not None


# infer_with_shards_or_raw.sh

DOOR = "infer_with_shards_or_raw.sh"
FAKE = ROOT / "common_utils" / "fake_data"
answer = partial(run_script, DOOR)


def test_without_arguments_it_shows_its_usage_and_lines_that_run():
    told = answer()
    assert told.returncode == 0 and told.stdout == answer("-h").stdout
    examples = [line.split() for line in told.stdout.splitlines()
                if line.startswith(f"  bash {DOOR} common_utils")]  # fmt: skip
    assert [Path(words[2]).parent.name for words in examples] == ["raw", "shard", "combine"]
    for words in examples:
        assert (ROOT / words[2]).exists() and words[3:] == ["--model", "tiny"]


def test_options_and_odd_names_are_passed_on_as_they_are(tmp_path):
    odd = tmp_path / "a list; touch $(echo pwned) 'x'"
    told = answer(odd, "--out", tmp_path / "out", folder=tmp_path)
    assert (told.returncode, told.stdout) == (2, "") and f"{odd}: no such file" in told.stderr
    assert list(tmp_path.iterdir()) == []
    assert "unrecognized arguments: --loud" in answer(odd, "--loud").stderr
    assert "--batch-size" in answer("--help").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["raw/data.list", "shard/shards_list.txt", "combine/combines_list.txt"]
)
def test_the_bundled_lists_run_on_the_tiny_model(name, tmp_path):
    told = answer(FAKE / name, "--out", tmp_path, "--greedy", "--model", "tiny", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "10 answered, 0 failed" in told.stdout
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len({one["key"] for one in results}) == 10
    for one in results:
        assert (one["speech_tokens"] > 0) == ("TEXT2TOKEN" in one["task"]) == bool(one["wav"])
        assert one["wav"] is None or (tmp_path / one["wav"]).stat().st_size > 1000


# Voices: made once from a recording, and spoken in by any assistant.

@pytest.fixture
def voice_file(tmp_path):
    path = tmp_path / "voice.safetensors"
    VoicePrompt.absent(torch.arange(192.0).view(1, -1)).save(path)
    return path


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_recording_becomes_a_small_file(tmp_path, capsys, rate):
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * rate)
    soundfile.write(tmp_path / "a.wav", noise, rate)
    out = tmp_path / "me.safetensors"
    assert make_voice.main([str(tmp_path / "a.wav"), "--out", str(out)]) == 0
    voice = VoicePrompt.load(out)
    assert (voice.tokens.shape, voice.mel.shape) == ((1, 50), (1, 172, 80))
    assert capsys.readouterr().out == f"{out}: 50 tokens, 172 frames, 56 kB\n"


def test_a_voice_goes_over_no_recording(question_wav, tmp_path, capsys):
    (tmp_path / "me.wav").write_bytes(question_wav.read_bytes())
    for name, message in (("me.wav", "this is the input"), ("other.mp3", "a voice is no sound")):
        argv = [str(tmp_path / "me.wav"), "--out", str(tmp_path / name)]
        assert make_voice.main(argv) == 2 and message in capsys.readouterr().err
    assert (tmp_path / "me.wav").read_bytes() == question_wav.read_bytes()


def test_an_assistant_speaks_through_the_published_tar(model_directory, voice_file, tmp_path):
    tar = write_tar(write_published(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="give --voice FILE"):
        EChat.load(model_directory, device="cpu", token2wav=tar)
    assistant = EChat.load(model_directory, device="cpu", token2wav=tar, voice=voice_file)
    wave = assistant.reply("hello there", task="tts").wave
    assert wave is not None and wave.isfinite().all()


def test_a_voice_of_another_model_is_refused(model_directory, tmp_path):
    voice = VoicePrompt(torch.full((1, 3), 4000), torch.zeros(1, 10, 80), torch.zeros(1, 192))
    voice.save(tmp_path / "voice.safetensors")
    with pytest.raises(InputError, match="a voice of token 4000, where this model knows 0 to"):
        EChat.load(model_directory, device="cpu", voice=tmp_path / "voice.safetensors")


# The wheel: every file is in it, its command and its public names are found

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


# Output: results to standard output, everything else to standard error

@pytest.fixture
def fresh(process_as_before):
    """The package's logger as a new process has it."""
    root = logging.getLogger("osum_echat")
    root.handlers[:], root.propagate = [], True


def test_logs_go_to_standard_error_and_results_to_standard_output(fresh, capsys):
    for _ in range(2):
        logs.setup()
    logs.logger("osum_echat.audio").info("loaded")
    logs.out("a result")
    shown = capsys.readouterr()
    assert shown.out == "a result\n" and shown.err.count("loaded") == 1


def test_who_reads_results_may_leave_before_their_end(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, pytest.raises(SystemExit, match="141"):
        monkeypatch.setattr("sys.stdout", stream)
        logs.out("a result")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_quiet_and_later_ranks_only_warn(fresh, capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    logs.setup(quiet=rank == "0")
    logs.logger("here").info("hidden")
    logs.logger("here").warning("seen")
    assert "hidden" not in (shown := capsys.readouterr().err) and "seen" in shown
