"""Claims about voices at the doors: made once from a recording, and spoken in by any assistant."""


import numpy as np
import pytest
import soundfile
import torch

from common_utils import make_voice
from osum_echat.errors import CheckpointError, InputError
from osum_echat.inference.assistant import EChat
from osum_echat.inference.load import token2wav_place
from osum_echat.token2wav.voice import VoicePrompt
from tests.token2wav.tiny_flow import write_published, write_tar


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


@pytest.mark.parametrize(
    ("wav", "model", "message"),
    [("gone.wav", "pretrained/tiny", "no such file"),
     ("question", "tests", "holds no speech_tokenizer.onnx")],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(question_wav, tmp_path, capsys, wav, model, message):
    source = str(question_wav if wav == "question" else wav)
    out = tmp_path / "voice.safetensors"
    assert make_voice.main([source, "--model", model, "--out", str(out)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("make_voice.py: ") and message in lines[0]
    assert not out.exists()


def test_a_voice_goes_over_no_recording(question_wav, tmp_path, capsys):
    (tmp_path / "me.wav").write_bytes(question_wav.read_bytes())
    for name, message in (("me.wav", "this is the input"), ("other.mp3", "a voice is no sound")):
        argv = [str(tmp_path / "me.wav"), "--out", str(tmp_path / name)]
        assert make_voice.main(argv) == 2 and message in capsys.readouterr().err
    assert (tmp_path / "me.wav").read_bytes() == question_wav.read_bytes()


def test_a_place_is_a_model_of_speech_or_holds_one(tmp_path):
    tar = tmp_path / "CosyVoice-300M-25Hz.tar"
    assert token2wav_place(tmp_path) == tmp_path
    tar.touch()
    assert token2wav_place(tmp_path) == token2wav_place(str(tar)) == tar


def test_assistants_share_one_token2wav_each_with_its_voice(model_directory, voice_file):
    first = EChat.load(model_directory, device="cpu")
    second = EChat.load(model_directory, device="cpu", share=first)
    third = EChat.load(model_directory, device="cpu", share=first, voice=voice_file)
    assert first.voice is second.voice
    assert third.voice is not None and first.voice is not None
    assert third.voice.flow is first.voice.flow and third.voice.vocoder is first.voice.vocoder
    assert third.voice.voice.speaker[0, 5] == 5 != first.voice.voice.speaker[0, 5]


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
