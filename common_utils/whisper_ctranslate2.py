"""A Whisper encoder of CTranslate2 as a file that the package reads.

    python common_utils/whisper_ctranslate2.py DIR      # model.bin to model.safetensors beside it

The small models start from such a Whisper, as faster-whisper uses it.
"""

import argparse
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from osum_echat import cli, weights
from osum_echat.errors import CheckpointError

SOURCE, TARGET = "model.bin", weights.WEIGHTS_FILE
VERSION = 6
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", 5: "<u2"}
BFLOAT16 = 5                    # stored as the upper half of a float32
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
        if not name.startswith(f"{part}/") or not value.is_floating_point() or not value.dim():
            continue
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        joint = next((one for one in ("qkv", "kv") if f".{one}." in name), "")
        for letter, one in zip(joint, value.to(dtype).chunk(len(joint) or 1), strict=False):
            found[name.replace(f".{joint}.", f".{letter}_proj.")] = one.clone()
        if not joint:
            found[name] = value.to(dtype)
    if not found:
        raise CheckpointError(f"{path}: holds no Whisper {part}")
    return {name: value for name, value in found.items() if not name.endswith("k_proj.bias")}


def read(path: Path) -> dict[str, Tensor]:
    """Every variable of a CTranslate2 model.bin.

    The layout, all little-endian: version u32, name of the specification, its revision u32, number
    of variables u32; for each its name, rank u8, dimensions u32 each, element type u8, bytes u32,
    data. A string is its length u16, counting a closing zero byte. Aliases may follow; the encoder
    has none.
    """
    try:
        with path.open("rb") as file:
            (version,) = _unpack(file, "<I", path)
            if version != VERSION:
                raise CheckpointError(
                    f"{path}: CTranslate2 layout {version}, only {VERSION} can be read"
                )
            _string(file, path)
            _, count = _unpack(file, "<II", path)
            return dict(_variable(file, path) for _ in range(count))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _variable(file: BinaryIO, path: Path) -> tuple[str, Tensor]:
    name = _string(file, path)
    (rank,) = _unpack(file, "<B", path)
    shape = _unpack(file, f"<{rank}I", path)
    kind, size = _unpack(file, "<BI", path)
    if kind not in DTYPES:
        raise CheckpointError(f"{path}: {name} has element type {kind}, known: {sorted(DTYPES)}")
    values = np.frombuffer(_exactly(file, size, path), DTYPES[kind])
    if kind == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return name, torch.from_numpy(values.reshape(shape).copy())


def _string(file: BinaryIO, path: Path) -> str:
    (length,) = _unpack(file, "<H", path)
    return _exactly(file, length, path).rstrip(b"\0").decode()


def _unpack(file: BinaryIO, layout: str, path: Path) -> tuple[int, ...]:
    return struct.unpack(layout, _exactly(file, struct.calcsize(layout), path))


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise CheckpointError(f"{path}: ends too early; fetch it again")
    return data


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    parser = argparse.ArgumentParser(description="Read the encoder of a CTranslate2 Whisper.")
    parser.add_argument("directory", type=Path, help=f"holds {SOURCE}; gets {TARGET}")
    directory = parser.parse_args(argv).directory

    def work() -> None:
        convert(directory)

    return cli.run("whisper_ctranslate2.py", work)


if __name__ == "__main__":
    sys.exit(main())
