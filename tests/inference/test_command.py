"""Claims about the inference door: what it prints, what it writes, one line for each fault."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

import infer_runtime
from osum_echat.inference import command

KEYS = ("task heard thought labels text wav sample_rate_hz n_speech_tokens timings audio_in_s "
        "audio_out_s").split()
TIMES = {*("load_s encode_s prefill_s first_text_s first_speech_token_s first_audio_s "
           "total_s").split()}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(model_directory: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The door with the tiny random model: exit code, standard output, standard error."""

    def call(*options: object) -> tuple[int, str, str]:
        given = [str(option) for option in options]
        if "--model" not in given:
            given += ["--model", str(model_directory)]
        code = infer_runtime.main([*given, "--device", "cpu"])
        return code, *capsys.readouterr()

    return call


def refused(result: tuple[int, str, str]) -> str:
    """The one line of a refusal."""
    code, out, err = result
    assert (code, out) == (2, "")
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("infer_runtime.py: "), err
    return lines[0]


def test_json_is_one_object_with_the_promised_keys(run, question_wav, tmp_path):
    out = tmp_path / "reply.wav"
    code, text, _ = run("--task", "s2s", "--wav", question_wav, "--out", out, "--json")
    reply = json.loads(text)
    assert code == 0 and list(reply) == KEYS and set(reply["timings"]) == TIMES
    assert reply["labels"] == {"emotion": None, "age": None, "gender": None, "event": None}
    samples, rate = soundfile.read(out)
    assert reply["wav"] == str(out) and reply["sample_rate_hz"] == rate == 22_050
    assert reply["audio_out_s"] == pytest.approx(len(samples) / rate, abs=1e-3)
    assert reply["audio_in_s"] == 1.0 and reply["n_speech_tokens"] > 0


def test_people_get_a_table(run, tmp_path):
    out = tmp_path / "spoken.wav"
    code, text, _ = run("--task", "tts", "--text", "<CALM>Hello there.", "--out", out)
    lines = [line for line in text.strip().splitlines() if not line.startswith(" ")]
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert code == 0 and rows["reply"] == "Hello there." and rows["speech"].startswith(str(out))


def test_without_options_every_task_runs_once(run, question_wav, tmp_path, monkeypatch):
    (tmp_path / "samples").mkdir()
    shutil.copy(question_wav, tmp_path / command.SAMPLE_WAV)
    monkeypatch.setattr(command, "TINY", tmp_path)
    monkeypatch.chdir(tmp_path)
    code, text, _ = run("--json")
    replies = json.loads(text)["replies"]
    assert code == 0 and [reply["task"] for reply in replies] == list(command.TOUR)
    spoken = [reply["task"] for reply in replies if reply["wav"]]
    assert spoken == ["tts", "s2s", "s2s_think"]


def test_a_stream_is_printed_as_it_comes(run, question_wav, tmp_path):
    out = tmp_path / "reply.wav"
    given = ("--task", "tts", "--text", "<SOFT>I am sorry.", "--out", out, "--stream")
    code, text, _ = run(*given, "--json")
    events = [json.loads(line) for line in text.splitlines()]
    kinds = [event["event"] for event in events]
    assert code == 0 and kinds[0] == "text" and kinds[-2:] == ["audio", "done"]
    assert events[0]["text"] == "I am sorry." and list(events[-1]["reply"]) == KEYS
    assert sum(event.get("samples", 0) for event in events) == len(soundfile.read(out)[0])
    times = [event["at_s"] for event in events[:-1]]
    assert times == sorted(times)
    code, text, _ = run(*given)
    assert code == 0 and "s  text     'I am sorry.'" in text and "\nreply    I am sorry." in text


def test_earlier_turns_are_read_from_a_file(run, question_wav, tmp_path):
    path = tmp_path / "dialogue.json"
    turn = {"wav": str(question_wav), "reply": "Is it red?", "reply_speech": [4, 5]}
    path.write_text(json.dumps([turn, {"text": "yes", "reply": "I see."}]))
    code, text, _ = run("--task", "s2s", "--wav", question_wav, "--history", path, "--json")
    assert code == 0 and json.loads(text)["task"] == "s2s"
    path.write_text(json.dumps([turn | {"reply_speech": [4096]}]))
    line = refused(run("--task", "s2s", "--wav", question_wav, "--history", path))
    assert f"{path}: speech code 4096, need 0 to 31" in line


def test_several_wavs_are_answered_together(run, question_wav, tmp_path):
    second, out = tmp_path / "second.wav", tmp_path / "replies"
    shutil.copy(question_wav, second)
    out.mkdir()
    code, text, _ = run("--task", "s2s", "--wav", question_wav, second, "--out", out, "--json")
    replies = json.loads(text)["replies"]
    assert code == 0 and [reply["asked"] for reply in replies] == [str(question_wav), str(second)]
    assert [reply["wav"] for reply in replies] == [str(out / "question.wav"),
                                                   str(out / "second.wav")]  # fmt: skip
    code, text, err = run("--task", "asr", "--wav", tmp_path / "gone.wav", second)
    assert code == 2 and text.count("task     asr") == 1
    assert "1 of 2 not answered" in err and "gone.wav: no such file" in err
    soundfile.write(second, [0.1] * 100, 16_000)
    err = run("--task", "asr", "--wav", question_wav, second)[2]
    assert f"{second}: 100 samples at 16 kHz, too few" in err


@pytest.mark.parametrize(("options", "message"), [
    (("--task", "s2x", "--wav", "q.wav"), "task 's2x': not one of"),
    (("--task", "s2s"), "give what it answers by --wav"),
    (("--text", ""), "give what it answers by --text"),
    (("--task", "tts", "--text", "<SOFT> "), "give it a text that is not empty"),
    (("--task", "t2t", "--text", "Hi.", "--seed", 10**20), "give a whole number of up to"),
    (("--task", "tts", "--text", "Hello.", "--wav", "q.wav"), "takes no --wav"),
    (("--task", "tts", "--text", "Hi.", "--out", "no/such/place.wav"), "directory that exists"),
    (("--out", "reply.wav"), "say with --task"),
    (("--wav", "a.wav", "b.wav", "--stream"), "--stream: for one --wav; 2 were given"),
    (("--wav", "a/q.wav", "b/q.wav", "--out", "."), "two of the wavs have one name"),
    (("--task", "asr", "--wav", "q.wav", "--history", "d.json"), "knows no earlier turns"),
    (("--task", "t2t", "--text", "Hi.", "--model", "no/model"), "no such model directory"),
    (("--wav", "gone.wav", "--model", "no/model"), "gone.wav: no such file"),
])  # fmt: skip
def test_an_option_that_cannot_be_used_is_one_line(run, options, message):
    assert message in refused(run(*options))


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "WAV"])
def test_a_reply_is_written_in_the_format_of_its_name(run, tmp_path, suffix):
    out = tmp_path / f"reply.{suffix}"
    assert run("--task", "tts", "--text", "<CALM>Hello there.", "--out", out)[0] == 0
    found = soundfile.info(out)
    assert (found.format, found.samplerate) == (suffix.upper(), 22_050) and found.frames > 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_reply_goes_over_no_input_and_into_no_unknown_format(run, question_wav, tmp_path):
    before, link = question_wav.read_bytes(), tmp_path / "link.wav"
    link.symlink_to(question_wav)
    for out in (question_wav, link):
        line = refused(run("--task", "s2s", "--wav", question_wav, "--out", out))
        assert "this is the input" in line
    many = run("--task", "s2s", "--wav", question_wav, link, "--out", question_wav.parent)
    assert "this is the input" in refused(many) and question_wav.read_bytes() == before
    line = refused(run("--task", "s2s", "--wav", question_wav, "--out", tmp_path / "x.m4a"))
    assert ".m4a is not written; choose one of .wav, .flac, .mp3, .ogg" in line


@pytest.mark.parametrize("text", ["half \ud83d of a pair", os.fsdecode(b"not \xff UTF-8")])
def test_a_text_that_is_no_unicode_is_one_line(run, question_wav, text):
    for options in (("--task", "tts", "--text", text), ("--task", "t2t", "--text", text),
                    ("--task", "asr", "--wav", question_wav, "--prompt", text)):  # fmt: skip
        assert "write the text in UTF-8" in refused(run(*options))


def test_threads_are_set_before_torch_loads_and_waiting_ones_sleep():
    code = ("import os, sys, infer_runtime\n"
            "from osum_echat.inference import command\n"
            "command.parser().parse_args(['--threads', '1'])\n"
            "assert 'torch' not in sys.modules\n"
            "import torch\nprint(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])")
    base = {name: value for name, value in os.environ.items() if not name.startswith("OMP")}
    for own, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              cwd=Path(infer_runtime.__file__).parent, env=base | own)  # fmt: skip
        assert done.stdout.split() == ["1", policy], done.stderr
