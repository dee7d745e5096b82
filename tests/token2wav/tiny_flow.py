"""A random flow and vocoder of a few thousand weights, and a directory that holds them."""

from dataclasses import asdict
from json import dumps, loads
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from osum_echat.token2wav.conformer import ConformerSettings
from osum_echat.token2wav.estimator import EstimatorSettings
from osum_echat.token2wav.flow import Flow, FlowSettings
from osum_echat.token2wav.hift import Hift, HiftSettings
from osum_echat.token2wav.model import Token2WavSettings

CODES = 11
FLOW = FlowSettings(
    codes=CODES,
    conformer=ConformerSettings(16, 16, 2, 24, 1, 0.0),
    estimator=EstimatorSettings((16, 16), 2, 8, 1, 1),
    regulator_convs=2,
    steps=2,
)
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
