"""A Whisper encoder of CTranslate2 as a file that the package reads.

    python common_utils/whisper_ctranslate2.py DIR      # model.bin to model.safetensors beside it

The small models start from such a Whisper, as faster-whisper uses it.
"""

import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common_utils.command import command
from osum_echat import weights
from osum_echat.errors import CheckpointError

SOURCE, TARGET = "model.bin", weights.WEIGHTS_FILE
VERSION = 6
DTYPES = {0: "<f4", 4: "<f2"}   # that weights have; others are settings, or rounded
NAMES = (                       # to those of transformers
    (r"^encoder/", "model.encoder."), (r"conv(\d)/", r"conv\1."),
    (r"layer_(\d+)/", r"layers.\1."), (r"self_attention/layer_norm/", "self_attn_layer_norm."),
    (r"self_attention/linear_0/", "self_attn.qkv."),
    (r"self_attention/linear_1/", "self_attn.out_proj."), (r"ffn/layer_norm/", "final_layer_norm."),
    (r"ffn/linear_0/", "fc1."), (r"ffn/linear_1/", "fc2."), (r"layer_norm/", "layer_norm."),
    (r"\.gamma$", ".weight"), (r"\.beta$", ".bias"),
)  # fmt: skip
DECODER_NAMES = (               # to those of the decoder of transformers
    (r"^decoder/", ""), (r"^embeddings/", "embed_tokens."),
    (r"^position_encodings/encodings", "embed_positions.weight"),
    (r"/attention/layer_norm/", "/encoder_attn_layer_norm."),
    (r"/attention/linear_0/", "/encoder_attn.q_proj."),
    (r"/attention/linear_1/", "/encoder_attn.kv."),
    (r"/attention/linear_2/", "/encoder_attn.out_proj."), (r"^layer_(\d+)/", r"layers.\1."),
    *NAMES[3:],
)  # fmt: skip


def convert(directory: Path) -> Path:
    """Write the encoder of DIR/model.bin to DIR/model.safetensors, if it is not there yet.

    Float32, under the names of transformers. Raises CheckpointError.
    """
    target = directory / TARGET
    if not target.is_file():
        weights.write_safetensors_file(target, encoder(directory / SOURCE))
    return target


def encoder(path: Path) -> dict[str, Tensor]:
    """The encoder's float32 weights of a model.bin, under the names of transformers."""
    return _part(path, "encoder", NAMES, torch.float32)


def decoder(path: Path) -> dict[str, Tensor]:
    """The decoder's weights of a model.bin in half precision, as the decoder of transformers."""
    return _part(path, "decoder", DECODER_NAMES, torch.float16)


def _part(
    path: Path, part: str, names: Sequence[tuple[str, str]], dtype: torch.dtype
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in read(path).items():
        if not name.startswith(f"{part}/") or not value.dim():
            continue
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        joint = next((one for one in ("qkv", "kv") if f".{one}." in name), "")
        for letter, one in zip(joint, value.to(dtype).chunk(len(joint) or 1), strict=False):
            found[name.replace(f".{joint}.", f".{letter}_proj.")] = one.clone()
        if not joint:
            found[name] = value.to(dtype)
    if not found:
        raise CheckpointError(f"{path}: holds no Whisper {part} of float32 or float16")
    return {name: value for name, value in found.items() if not name.endswith("k_proj.bias")}


def read(path: Path) -> dict[str, Tensor]:
    """Every variable of floats of a CTranslate2 model.bin.

    The layout, all little-endian: version u32, name of the specification, its revision u32, number
    of variables u32; for each its name, rank u8, dimensions u32 each, element type u8, bytes u32,
    data. A string is its length u16, counting a closing zero byte. Aliases may follow; the encoder
    has none.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    place = 0

    def take(layout: str) -> tuple[int, ...]:
        nonlocal place
        place += struct.calcsize(layout)
        return struct.unpack_from(layout, data, place - struct.calcsize(layout))

    def text() -> str:
        (length,) = take("<H")
        return bytes(take(f"<{length}B")).rstrip(b"\0").decode()

    try:
        (version,) = take("<I")
        if version != VERSION:
            raise CheckpointError(f"{path}: CTranslate2 layout {version}, not {VERSION}")
        text()
        _, count = take("<II")
        found = {}
        for _ in range(count):
            name, (rank,) = text(), take("<B")
            shape = take(f"<{rank}I")
            kind, size = take("<BI")
            if kind in DTYPES:
                dtype = np.dtype(DTYPES[kind])
                values = np.frombuffer(data, dtype, size // dtype.itemsize, place).reshape(shape)
                found[name] = torch.from_numpy(values.copy())
            take(f"<{size}x")
        return found
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: ends too early; fetch it again") from error


def convert_all(directory: Path, /) -> None:
    """Convert one directory."""
    convert(directory)


main = command(convert_all, directory=f"holds {SOURCE}; gets {TARGET}")

if __name__ == "__main__":
    sys.exit(main())
