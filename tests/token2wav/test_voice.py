"""Claims about voices: files, guards, and what is handed to the two ONNX models."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from osum_echat.errors import CheckpointError, InputError
from osum_echat.token2wav import voice
from osum_echat.token2wav.voice import SpeakerEncoder, SpeechTokenizer, VoicePrompt, make_prompt


class FakeSession:
    """Answers with a token every four frames, or with 192 numbers; keeps what it was fed."""

    def __init__(self, path: Path) -> None:
        self.is_tokenizer = "tokenizer" in str(path)
        self.fed: list[np.ndarray] = []

    def get_inputs(self):
        if self.is_tokenizer:
            shape = [1, 128, "frames"]
            return [SimpleNamespace(name="feats", shape=shape),
                    SimpleNamespace(name="feats_length", shape=[1])]  # fmt: skip
        return [SimpleNamespace(name="input", shape=["batch", "frames", 80])]

    def run(self, names, feeds):
        self.fed = list(feeds.values())
        if self.is_tokenizer:
            return [np.arange(self.fed[0].shape[2] // 4, dtype=np.int32)[None, None]]
        return [np.ones((1, 192), np.float32)]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> tuple[SpeechTokenizer, SpeakerEncoder]:
    monkeypatch.setattr(voice, "open_onnx", FakeSession)
    return SpeechTokenizer("tokenizer.onnx"), SpeakerEncoder("speaker.onnx")


def write_wav(path: Path, seconds: float, rate: int = 24_000) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    soundfile.write(path, samples, rate)
    return path


def test_the_tokenizer_hears_as_many_mel_bins_as_it_asks_for(models):
    tokenizer, _ = models
    assert tokenizer(torch.randn(16_000)) == list(range(25))
    features, length = tokenizer.session.fed
    assert features.shape == (1, 128, 100)
    assert (length.dtype, list(length)) == (np.int32, [100])


def test_a_recording_becomes_tokens_mel_and_speaker_of_one_length(models, tmp_path: Path):
    prompt = make_prompt(write_wav(tmp_path / "a.wav", 2.0), *models)
    assert prompt.tokens.shape == (1, 50)
    assert prompt.mel.shape == (1, 172, 80)
    assert prompt.speaker.shape == (1, 192)


def test_a_recording_over_30_s_is_refused(models, tmp_path: Path):
    with pytest.raises(InputError, match=r"31\.0 s; a voice prompt is at most 30 s"):
        make_prompt(write_wav(tmp_path / "long.wav", 31.0, 8_000), *models)


def test_a_saved_voice_comes_back(tmp_path: Path):
    prompt = VoicePrompt(torch.arange(4).view(1, -1), torch.randn(1, 9, 80), torch.randn(1, 192))
    prompt.save(tmp_path / "voice.safetensors")
    again = VoicePrompt.load(tmp_path / "voice.safetensors")
    assert torch.equal(again.tokens, prompt.tokens)
    assert torch.equal(again.mel, prompt.mel)
    assert torch.equal(again.speaker, prompt.speaker)


def test_a_voice_may_be_a_speaker_vector_alone(tmp_path: Path):
    VoicePrompt.absent(torch.ones(1, 192)).save(tmp_path / "voice.safetensors")
    assert VoicePrompt.load(tmp_path / "voice.safetensors").mel.shape == (1, 0, 80)


def test_a_voice_of_wrong_shapes_is_refused():
    with pytest.raises(InputError, match=r"need \(1, tokens\), \(1, frames, 80\), \(1, 192\)"):
        VoicePrompt(torch.zeros(1, 3), torch.zeros(1, 80, 9), torch.zeros(1, 192))


def test_a_damaged_voice_file_is_refused(tmp_path: Path):
    (tmp_path / "voice.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a readable voice file"):
        VoicePrompt.load(tmp_path / "voice.safetensors")


def test_too_few_samples_for_a_mel_are_refused():
    with pytest.raises(InputError, match="too few for a mel"):
        voice.prompt_mel(torch.zeros(384))


def test_a_missing_onnx_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"speaker\.onnx: no such file"):
        SpeakerEncoder(tmp_path / "speaker.onnx")


def test_a_damaged_onnx_file_is_refused(tmp_path: Path):
    (tmp_path / "speaker.onnx").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a readable ONNX model"):
        SpeakerEncoder(tmp_path / "speaker.onnx")
