"""Starting the encoder from a pretrained Whisper: CTranslate2, transformers or OpenAI's own."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.stored import Stored

CTRANSLATE2_VERSION = 6
CTRANSLATE2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", 5: "<u2"}
BFLOAT16 = 5  # stored as the upper half of a float32
HEAD_WIDTH = 64  # in every Whisper
CTRANSLATE2_FILE = "model.bin"
FILES = (CTRANSLATE2_FILE, "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

FROM_TRANSFORMERS = (
    (r"^model\.", ""),
    (r"^encoder\.conv1\.", "embed.conv.0."),
    (r"^encoder\.conv2\.", "embed.conv.2."),
    (r"^encoder\.layer_norm\.", "after_norm."),
    (r"^encoder\.layers\.(\d+)\.", r"encoders.\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".self_attn.linear_\1."),
    (r"\.self_attn\.out_proj\.", ".self_attn.linear_out."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.fc([12])\.", r".feed_forward.w_\1."),
)
FROM_OPENAI = (
    (r"^encoder\.conv1\.", "embed.conv.0."),
    (r"^encoder\.conv2\.", "embed.conv.2."),
    (r"^encoder\.ln_post\.", "after_norm."),
    (r"^encoder\.blocks\.(\d+)\.", r"encoders.\1."),
    (r"\.attn\.(q)uery\.|\.attn\.(k)ey\.|\.attn\.(v)alue\.", r".self_attn.linear_\1\2\3."),
    (r"\.attn\.out\.", ".self_attn.linear_out."),
    (r"\.attn_ln\.", ".norm1."),
    (r"\.mlp_ln\.", ".norm2."),
    (r"\.mlp\.0\.", ".feed_forward.w_1."),
    (r"\.mlp\.2\.", ".feed_forward.w_2."),
)
OPENAI_MARK = "encoder.ln_post.weight"
FROM_CTRANSLATE2 = (
    (r"^encoder/conv1/", "embed.conv.0."),
    (r"^encoder/conv2/", "embed.conv.2."),
    (r"^encoder/layer_norm/", "after_norm."),
    (r"^encoder/layer_(\d+)/", r"encoders.\1."),
    (r"self_attention/layer_norm/", "norm1."),
    (r"self_attention/linear_0/", "self_attn.linear_qkv."),
    (r"self_attention/linear_1/", "self_attn.linear_out."),
    (r"ffn/layer_norm/", "norm2."),
    (r"ffn/linear_0/", "feed_forward.w_1."),
    (r"ffn/linear_1/", "feed_forward.w_2."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def start_encoder(encoder: Encoder, source: Path) -> None:
    """Give an encoder the weights of a Whisper of the same shape.

    source: model.bin (CTranslate2), model.safetensors or pytorch_model.bin (transformers), OpenAI's
    .pt, or the folder holding one of them. Raises CheckpointError for other sizes or keys.
    """
    weights = read_whisper(source)
    found, wanted = settings_of(weights), encoder.settings
    sizes = {
        name: (getattr(found, name), getattr(wanted, name))
        for name in ("mels", "width", "heads", "units", "blocks")
    }
    wrong = [
        f"{name} {here} there, {ours} here" for name, (here, ours) in sizes.items() if here != ours
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: not the encoder's sizes: {'; '.join(wrong)}: change the encoder's settings"
        )
    expected = encoder.state_dict()
    checkpoint.check(source, expected, {name: Stored.of(one) for name, one in weights.items()})
    encoder.load_state_dict(weights)


def settings_of(weights: dict[str, Tensor]) -> EncoderSettings:
    """The sizes of the encoder whose weights these are (as returned by read_whisper)."""
    width, mels, _ = weights["embed.conv.0.weight"].shape
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("encoders."))
    units = len(weights["encoders.0.feed_forward.w_1.bias"])
    return EncoderSettings(mels, width, width // HEAD_WIDTH, units, blocks)


def read_whisper(source: Path) -> dict[str, Tensor]:
    """The encoder's float32 weights under our names, from any of the layouts."""
    path = whisper_file(source)
    if path.name == CTRANSLATE2_FILE:
        return named_as_ours(read_ctranslate2(path), FROM_CTRANSLATE2, path)
    weights = checkpoint.open_weights(path)
    rules = FROM_OPENAI if OPENAI_MARK in weights else FROM_TRANSFORMERS
    own = {name: one.read() for name, one in weights.items() if "encoder." in name}
    return named_as_ours(own, rules, path)


def whisper_file(source: Path) -> Path:
    """The file of the weights: the source itself, or the one in a folder."""
    if not source.exists():
        raise CheckpointError(f"{source}: no such Whisper; give a folder with its {FILES[0]}")
    if source.is_file():
        return source
    found = [source / name for name in FILES if (source / name).is_file()]
    found = found or sorted(source.glob("*.pt"))
    if len(found) < 1 or (found[0].suffix == ".pt" and len(found) > 1):
        raise CheckpointError(
            f"{source}: holds neither {FILES[0]} (CTranslate2) nor {FILES[1]} (transformers), and "
            f"{len(found)} .pt (OpenAI); give the file"
        )
    return found[0]


def named_as_ours(
    raw: dict[str, Tensor], rules: tuple[tuple[str, str], ...], source: Path
) -> dict[str, Tensor]:
    """Rename, split joined projections, and leave out what the encoder does not have."""
    weights = {}
    for name, value in raw.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(("embed.conv.", "encoders.", "after_norm.")):
            continue
        if ".linear_qkv." not in name:
            weights[name] = value.float()
            continue
        for letter, part in zip("qkv", value.float().chunk(3), strict=True):
            weights[name.replace("linear_qkv", f"linear_{letter}")] = part.clone()
    if "embed.conv.0.weight" not in weights:
        raise CheckpointError(f"{source}: holds no Whisper encoder")
    return {name: value for name, value in weights.items() if not name.endswith("linear_k.bias")}


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """Every variable of a CTranslate2 model.bin.

    The layout, all little-endian: version u32, name of the specification, its revision u32, number
    of variables u32; for each its name, rank u8, dimensions u32 each, element type u8, bytes u32,
    data. A string is its length u16, counting a closing zero byte. Aliases may follow; the encoder
    has none.
    """
    with path.open("rb") as file:
        (version,) = unpack(file, "<I", path)
        if version != CTRANSLATE2_VERSION:
            raise CheckpointError(
                f"{path}: CTranslate2 layout {version}, only {CTRANSLATE2_VERSION} can be read"
            )
        string(file, path)
        _, count = unpack(file, "<II", path)
        return dict(variable(file, path) for _ in range(count))


def variable(file: BinaryIO, path: Path) -> tuple[str, Tensor]:
    name = string(file, path)
    (rank,) = unpack(file, "<B", path)
    shape = unpack(file, f"<{rank}I", path)
    kind, size = unpack(file, "<BI", path)
    if kind not in CTRANSLATE2_DTYPES:
        raise CheckpointError(
            f"{path}: {name} has element type {kind}, known: {sorted(CTRANSLATE2_DTYPES)}"
        )
    values = np.frombuffer(exactly(file, size, path), CTRANSLATE2_DTYPES[kind])
    if kind == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return name, torch.from_numpy(values.reshape(shape).copy())


def string(file: BinaryIO, path: Path) -> str:
    (length,) = unpack(file, "<H", path)
    return exactly(file, length, path).rstrip(b"\0").decode()


def unpack(file: BinaryIO, layout: str, path: Path) -> tuple[int, ...]:
    return struct.unpack(layout, exactly(file, struct.calcsize(layout), path))


def exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise CheckpointError(f"{path}: ends too early; fetch it again")
    return data
