"""Claims about starting from Whisper: both layouts give the same encoder."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from osum_echat.errors import CheckpointError
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.whisper_start import (
    read_ctranslate2,
    read_whisper,
    settings_of,
    start_encoder,
)

SETTINGS = EncoderSettings(mels=6, width=64, heads=1, units=16, blocks=2)


def encoder(seed: int) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(SETTINGS).eval()


def transformers_name(name: str) -> str:
    name = name.replace("embed.conv.0", "conv1").replace("embed.conv.2", "conv2")
    name = name.replace("after_norm", "layer_norm").replace("encoders", "layers")
    name = name.replace("norm1", "self_attn_layer_norm").replace("norm2", "final_layer_norm")
    name = re.sub(r"linear_([qkv])", r"\1_proj", name).replace("linear_out", "out_proj")
    return name.replace("feed_forward.w_", "fc")


def ctranslate2_variables(model: Encoder) -> dict[str, np.ndarray]:
    """The weights under the other layout's names; query, key and value in one."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {
        "decoder/embeddings/weight": np.ones((2, 3), np.float32),
        "encoder/num_heads": np.int16(1),
    }
    for ours, theirs in (("embed.conv.0", "conv1"), ("embed.conv.2", "conv2")):
        found |= {
            f"encoder/{theirs}/{part}": weights[f"{ours}.{part}"] for part in ("weight", "bias")
        }
    norms = {"after_norm": "layer_norm"}
    for block in range(SETTINGS.blocks):
        own, there = f"encoders.{block}", f"layer_{block}"
        joined = [weights[f"{own}.self_attn.linear_{letter}.weight"] for letter in "qkv"]
        bias = [weights[f"{own}.self_attn.linear_{letter}.bias"] for letter in "qv"]
        found[f"encoder/{there}/self_attention/linear_0/weight"] = np.concatenate(joined)
        found[f"encoder/{there}/self_attention/linear_0/bias"] = np.concatenate(
            (bias[0], np.zeros_like(bias[0]), bias[1])
        )
        for ours, theirs in (
            ("self_attn.linear_out", "self_attention/linear_1"),
            ("feed_forward.w_1", "ffn/linear_0"),
            ("feed_forward.w_2", "ffn/linear_1"),
        ):
            for part in ("weight", "bias"):
                found[f"encoder/{there}/{theirs}/{part}"] = weights[f"{own}.{ours}.{part}"]
        norms |= {
            f"{own}.norm1": f"{there}/self_attention/layer_norm",
            f"{own}.norm2": f"{there}/ffn/layer_norm",
        }
    for ours, theirs in norms.items():
        found[f"encoder/{theirs}/gamma"] = weights[f"{ours}.weight"]
        found[f"encoder/{theirs}/beta"] = weights[f"{ours}.bias"]
    return found


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray]) -> None:
    kinds = {"float32": 0, "int16": 2, "float16": 4}
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += (
            text(name)
            + struct.pack("<B", value.ndim)
            + struct.pack(f"<{value.ndim}I", *value.shape)
        )
        data += struct.pack("<BI", kinds[value.dtype.name], value.nbytes) + value.tobytes()
    path.write_bytes(data)


def test_both_layouts_give_the_encoder_its_weights(tmp_path: Path):
    source = encoder(1)
    write_ctranslate2(tmp_path / "model.bin", ctranslate2_variables(source))
    other = tmp_path / "other"
    other.mkdir()
    named = {
        f"model.encoder.{transformers_name(name)}": value
        for name, value in source.state_dict().items()
    }
    save_file({**named, "model.decoder.x": torch.ones(1)}, other / "model.safetensors")
    for place in (tmp_path, other):
        started = encoder(2)
        start_encoder(started, place)
        for name, value in source.state_dict().items():
            assert torch.equal(started.state_dict()[name], value), name


def test_half_precision_variables_are_read(tmp_path: Path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3) / 3
    write_ctranslate2(tmp_path / "model.bin", {"a": values, "b": np.int16(7)})
    raw = read_ctranslate2(tmp_path / "model.bin")
    assert torch.equal(raw["a"], torch.from_numpy(values)) and raw["b"].item() == 7


def test_the_sizes_are_read_from_the_weights(tmp_path: Path):
    write_ctranslate2(tmp_path / "model.bin", ctranslate2_variables(encoder(1)))
    found = settings_of(read_whisper(tmp_path))
    assert (found.mels, found.width, found.heads, found.units, found.blocks) == (6, 64, 1, 16, 2)


def test_another_size_is_refused_with_both(tmp_path: Path):
    write_ctranslate2(tmp_path / "model.bin", ctranslate2_variables(encoder(1)))
    with pytest.raises(CheckpointError, match="units 16 there, 20 here"):
        start_encoder(Encoder(EncoderSettings(6, 64, 1, 20, 2)), tmp_path)


def test_a_file_cut_short_is_one_clear_line(tmp_path: Path):
    path = tmp_path / "model.bin"
    write_ctranslate2(path, ctranslate2_variables(encoder(1)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="ends too early"):
        read_whisper(path)
    with pytest.raises(CheckpointError, match="holds neither"):
        read_whisper(tmp_path / "..")


@pytest.fixture(scope="module")
def stock() -> torch.nn.Module:
    """A stock transformers Whisper of the same sizes with random weights."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=50, num_mel_bins=6, d_model=64, encoder_layers=2, encoder_attention_heads=1,
        encoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=16,
        max_source_positions=50, max_target_positions=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperModel(config).eval()


def openai_weights(stock: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The encoder of a stock Whisper under the names of OpenAI's own files, in half precision."""
    renamed = {}
    for name, value in stock.state_dict().items():
        for theirs, openai in (
            ("layers", "blocks"), ("self_attn.q_proj", "attn.query"), ("fc1", "mlp.0"),
            ("self_attn.k_proj", "attn.key"), ("self_attn.v_proj", "attn.value"), ("fc2", "mlp.2"),
            ("self_attn.out_proj", "attn.out"), ("self_attn_layer_norm", "attn_ln"),
            ("final_layer_norm", "mlp_ln"), ("encoder.layer_norm", "encoder.ln_post"),
            ("embed_positions.weight", "positional_embedding"),
        ):  # fmt: skip
            name = name.replace(theirs, openai)
        renamed[name] = value
    return renamed


@torch.no_grad()
def test_the_encoder_computes_what_the_stock_whisper_computes(stock, tmp_path: Path):
    stock.save_pretrained(tmp_path / "transformers")
    (tmp_path / "openai").mkdir()
    dims = {"n_mels": 6, "n_audio_state": 64}
    torch.save({"dims": dims, "model_state_dict": openai_weights(stock)},
               tmp_path / "openai" / "medium.pt")  # fmt: skip
    mels = torch.randn(2, 100, 6)
    wanted = stock.encoder(mels.transpose(1, 2)).last_hidden_state
    for place in ("transformers", "openai", "openai/medium.pt"):
        started = encoder(2)
        start_encoder(started, tmp_path / place)
        steps, lengths = started(mels, torch.tensor([100, 100]))
        assert torch.allclose(steps, wanted, atol=1e-5), place
        assert lengths.tolist() == [50, 50]


def test_a_folder_with_several_openai_files_asks_for_one(stock, tmp_path: Path):
    for name in ("small.pt", "medium.pt"):
        torch.save({"model_state_dict": openai_weights(stock)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 \.pt \(OpenAI\); give the file"):
        read_whisper(tmp_path)
