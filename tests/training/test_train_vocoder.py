"""Claims about the training of the vocoder."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.token2wav import settings, weights
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.training import train_vocoder
from osum_echat.training.runs import LimitSettings
from osum_echat.training.train_vocoder import VocoderTraining

SPEC = importlib.util.spec_from_file_location("voices", Path(__file__).with_name("voices.py"))
voices = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(voices)


def training(folder, name, steps, **more) -> VocoderTraining:
    rows = folder / "voices.list"
    if not rows.is_file():
        voices.write_voices(folder, {"low": 110.0}, rows=3)
    return VocoderTraining(
        (str(rows),), str(folder / name), LimitSettings(steps=steps, log_steps=1),
        NsfVocosSettings(width=8, blocks=1, pitch_width=8, pitch_blocks=1),
        batch=2, crop_frames=16, pitch_crop_frames=16, pitch_updates=1, held_out=1,
        precision="fp32", **more,
    )


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path):
    whole = weights.read(train_vocoder.train(training(tmp_path, "whole", 4)))
    train_vocoder.train(training(tmp_path, "parts", 2))
    parts = weights.read(train_vocoder.train(training(tmp_path, "parts", 4)))
    assert all(torch.equal(part, parts[name]) for name, part in whole.items())
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2, 3, 4, 4]


def test_what_is_exported_loads_into_the_vocoder_its_yaml_describes(tmp_path):
    path = train_vocoder.train(training(tmp_path, "out", 1))
    raw = settings.read_yaml(path.with_name("vocoder.yaml"))
    assert raw["vocoder"] == "nsf_vocos"
    vocoder = NsfVocos(settings.parse(NsfVocosSettings, raw["nsf_vocos"], "vocoder.yaml"))
    weights.fill(vocoder, {k: v.float() for k, v in weights.read(path).items()}, str(path))


def test_the_losses_are_nothing_for_the_same_wave():
    wave = torch.randn(2, 4096)
    mel, spectral = train_vocoder.wave_losses(wave, wave)
    assert mel == 0
    assert spectral == 0
    assert all(loss > 0.1 for loss in train_vocoder.wave_losses(0.3 * wave, wave))


def test_crops_too_short_for_the_losses_are_refused():
    with pytest.raises(ConfigError, match="crop_frames 4"):
        VocoderTraining(("a",), "b", LimitSettings(steps=1), crop_frames=4)
