"""Claims about voices: files, guards, and what is handed to the two ONNX models."""

import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from osum_echat.errors import CheckpointError, InputError
from osum_echat.token2wav.model import find_files, measure_voice
from osum_echat.token2wav.voice import SpeakerEncoder, SpeechTokenizer, VoicePrompt, make_prompt


def write_wav(path: Path, seconds: float, rate: int = 24_000) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    soundfile.write(path, samples, rate)
    return path


def test_a_recording_over_30_s_or_of_silence_makes_no_voice(tmp_path: Path):
    with pytest.raises(InputError, match=r"31\.0 s; a voice prompt is at most 30 s"):
        make_prompt(write_wav(tmp_path / "long.wav", 31.0, 8_000), None, None)
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    with pytest.raises(InputError, match=r"silent\.wav: digital silence.*no voice is in it"):
        make_prompt(path, None, None)


NONE, MEL = torch.full((1, 192), float("nan")), torch.zeros(1, 2, 80)


@pytest.mark.parametrize(("content", "message"), [
    (b"no", "not a readable voice file"), (b"0" * 20_000_000, "over 16777216 bytes"),
    ({"mel": MEL}, "no speaker, tokens; make the voice anew"),
    ({"tokens": torch.zeros(1, 3).long(), "mel": MEL, "speaker": NONE}, "not finite"),
    ({"tokens": torch.tensor([[-3]]), "mel": MEL, "speaker": torch.zeros(1, 192)}, "are no ids"),
    ({"tokens": torch.zeros(1, 3).long(), "mel": MEL[0], "speaker": NONE}, "of shapes"),
])  # fmt: skip
def test_what_is_no_voice_is_refused(tmp_path: Path, content, message: str):
    path = tmp_path / "voice.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else save(content))
    with pytest.raises(CheckpointError, match=rf"voice\.safetensors: .*{message}"):
        VoicePrompt.load(path)
    with pytest.raises(InputError, match="not written"):
        VoicePrompt.absent().save(path / "in_a_file.safetensors")


def write_onnx(path: Path, *inputs: tuple[int, list[int | str]]) -> Path:
    """A graph that hands on its first input; the inputs are (type, axes)."""
    named = [helper.make_tensor_value_info(f"in{number}", kind, axes)
             for number, (kind, axes) in enumerate(inputs)]  # fmt: skip
    out = helper.make_tensor_value_info("out", inputs[0][0], inputs[0][1])
    node = helper.make_node("Identity", ["in0"], ["out"])
    graph = helper.make_graph([node], "graph", named, [out])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


HEARS_TOKENS = (TensorProto.FLOAT, [1, 128, "frames"]), (TensorProto.INT32, [1])
HEARS_SPEAKER = ((TensorProto.FLOAT, [1, "frames", 80]),)


@pytest.mark.parametrize(("kind", "inputs", "message"), [
    (SpeechTokenizer, HEARS_SPEAKER, "a speaker encoder where a speech tokenizer is"),
    (SpeakerEncoder, HEARS_TOKENS, "a speech tokenizer where a speaker encoder is"),
    (SpeechTokenizer, (HEARS_TOKENS[0], (TensorProto.INT64, [1])), "another model where"),
    (SpeakerEncoder, ((TensorProto.FLOAT, [1, "frames", 40]),), "hears 40 bins, need 80"),
])  # fmt: skip
def test_an_onnx_file_of_another_kind_is_told(tmp_path: Path, kind, inputs, message: str):
    with pytest.raises(CheckpointError, match=rf"other\.onnx: {message}"):
        kind(write_onnx(tmp_path / "other.onnx", *inputs))


def test_a_member_of_a_tar_opens_as_a_file_does(tmp_path: Path):
    path = write_onnx(tmp_path / "campplus.onnx", *HEARS_SPEAKER)
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(path, "folder/campplus.onnx")
    member = find_files(tmp_path / "model.tar")["campplus.onnx"]
    assert len(SpeakerEncoder(member).inputs) == 1
    assert SpeechTokenizer(write_onnx(tmp_path / "hears.onnx", *HEARS_TOKENS)).mels == 128


def test_a_model_of_trained_voices_alone_says_that_it_imitates_none(tmp_path: Path):
    with pytest.raises(InputError, match="cannot imitate a voice; speak in its own"):
        measure_voice(tmp_path, write_wav(tmp_path / "me.wav", 1.0))
