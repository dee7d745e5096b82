"""Claims about a Whisper of CTranslate2: its encoder is the one that the package reads."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from common_utils import whisper_ctranslate2
from osum_echat.errors import CheckpointError
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.pretrained import encoder_settings, read_whisper, start_encoder

SETTINGS = EncoderSettings(mels=6, width=64, heads=1, units=16, blocks=2)


def encoder(seed: int) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(SETTINGS).eval()


def ctranslate2_variables(model: Encoder) -> dict[str, np.ndarray]:
    """The weights under the other layout's names; query, key and value in one."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {"decoder/embeddings/weight": np.ones((2, 3), np.float32),
             "encoder/num_heads": np.int16(1)}  # fmt: skip
    layers, norms = {"embed.conv.0": "conv1", "embed.conv.2": "conv2"}, {"after_norm": "layer_norm"}
    for block in range(SETTINGS.blocks):
        own, there = f"encoders.{block}", f"layer_{block}"
        joined = [weights[f"{own}.self_attn.linear_{letter}.weight"] for letter in "qkv"]
        query, value = (weights[f"{own}.self_attn.linear_{letter}.bias"] for letter in "qv")
        found[f"encoder/{there}/self_attention/linear_0/weight"] = np.concatenate(joined)
        bias = np.concatenate((query, np.zeros_like(query), value))
        found[f"encoder/{there}/self_attention/linear_0/bias"] = bias
        layers |= {f"{own}.self_attn.linear_out": f"{there}/self_attention/linear_1",
                   f"{own}.feed_forward.w_1": f"{there}/ffn/linear_0",
                   f"{own}.feed_forward.w_2": f"{there}/ffn/linear_1"}  # fmt: skip
        norms |= {f"{own}.norm1": f"{there}/self_attention/layer_norm",
                  f"{own}.norm2": f"{there}/ffn/layer_norm"}  # fmt: skip
    for names, parts in ((layers, ("weight", "bias")), (norms, ("gamma", "beta"))):
        for ours, theirs in names.items():
            for part, called in zip(("weight", "bias"), parts, strict=True):
                found[f"encoder/{theirs}/{called}"] = weights[f"{ours}.{part}"]
    return found


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray]) -> None:
    kinds = {"float32": 0, "int16": 2, "float16": 4}
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", kinds[value.dtype.name], value.nbytes) + value.tobytes()
    path.write_bytes(data)


def test_the_encoder_gets_its_weights_after_the_conversion(tmp_path: Path):
    source, started = encoder(1), encoder(2)
    write_ctranslate2(tmp_path / "model.bin", ctranslate2_variables(source))
    assert whisper_ctranslate2.main([str(tmp_path)]) == 0
    assert encoder_settings(read_whisper(tmp_path)) == EncoderSettings(6, 64, 1, 16, 2)
    start_encoder(started, tmp_path)
    for name, value in source.state_dict().items():
        assert torch.equal(started.state_dict()[name], value), name


def test_half_precision_variables_are_read(tmp_path: Path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3) / 3
    write_ctranslate2(tmp_path / "model.bin", {"a": values, "b": np.int16(7)})
    raw = whisper_ctranslate2.read(tmp_path / "model.bin")
    assert torch.equal(raw["a"], torch.from_numpy(values)) and raw["b"].item() == 7


def test_a_file_cut_short_or_missing_is_one_clear_line(tmp_path: Path, capsys):
    path = tmp_path / "model.bin"
    write_ctranslate2(path, ctranslate2_variables(encoder(1)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="ends too early"):
        whisper_ctranslate2.convert(tmp_path)
    assert whisper_ctranslate2.main([str(tmp_path / "gone")]) == 2
    assert "cannot be read" in capsys.readouterr().err
