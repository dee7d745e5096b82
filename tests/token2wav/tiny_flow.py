"""A random flow and vocoder of a few thousand weights, and directories that hold them."""

import tarfile
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from osum_echat.token2wav.estimator import EstimatorSettings
from osum_echat.token2wav.flow import Flow, FlowSettings
from osum_echat.token2wav.hift import Hift, HiftSettings
from osum_echat.token2wav.layers import ConformerSettings
from osum_echat.token2wav.model import Token2WavSettings

CODES = 64
FLOW = FlowSettings(codes=CODES, conformer=ConformerSettings(16, 16, 2, 24, 1, 0.0),
                    estimator=EstimatorSettings((16, 16), 2, 8, 1, 1), regulator_convs=2,
                    steps=2)  # fmt: skip
HIFT = HiftSettings(channels=16, pitch_channels=8)


def tiny_flow(settings: FlowSettings = FLOW) -> Flow:
    torch.manual_seed(3)
    return Flow(settings).eval()


def tiny_hift() -> Hift:
    torch.manual_seed(4)
    return Hift(HIFT).eval()


def write_directory(directory: Path) -> Path:
    """A token2wav directory without a voice, its weights in the published file names."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = asdict(Token2WavSettings("hift", FLOW, HIFT))
    text = yaml.safe_dump(loads(dumps(settings)))
    (directory / "token2wav.yaml").write_text(text, encoding="utf-8")
    torch.save({**tiny_flow().state_dict(), "epoch": 3, "step": 10}, directory / "flow.pt")
    save_file(tiny_hift().state_dict(), directory / "vocoder.safetensors")
    return directory


def split_norm(
    tensors: dict[str, torch.Tensor], names: tuple[str, str], prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Weights as a length and a direction that is three times too long."""
    split: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if key.endswith("weight") and value.dim() == 3 and "source_downs" not in key:
            size = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            stem = prefix + key.removesuffix("weight")
            split |= {stem + names[0]: size, stem + names[1]: value * 3}
        else:
            split[prefix + key] = value
    return split


def write_published(directory: Path, hift: dict[str, torch.Tensor] | None = None) -> Path:
    """The published layout: flow.pt and hift.pt, its weight norm in two parts; other files too."""
    write_directory(directory)
    (directory / "vocoder.safetensors").unlink()
    norm = split_norm(tiny_hift().state_dict(), ("weight_g", "weight_v"))
    torch.save(hift or norm, directory / "hift.pt")
    (directory / "llm.pt").write_bytes(b"never read")
    (directory / "cosyvoice.yaml").write_text(
        "a: !!python/object/apply:os.system ['false']\nflow: !new:a.B\n    input_frame_rate: 25\n"
    )
    return directory


def write_tar(directory: Path) -> Path:
    """The directory as it is published: an uncompressed tar with one folder, beside it."""
    path = directory.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(directory, "CosyVoice-300M-25Hz")
    return path
