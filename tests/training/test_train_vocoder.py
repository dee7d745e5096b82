"""Claims about the training of the vocoder."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from common_utils.token2wav_recipe import train_vocoder
from common_utils.token2wav_recipe.runs import LimitSettings
from common_utils.token2wav_recipe.train_vocoder import VocoderTraining
from osum_echat import weights
from osum_echat.errors import ConfigError, DataError
from osum_echat.settings import parse, read_mapping
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from tests.token2wav.tiny_flow import FLOW, tiny_flow

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
    raw = read_mapping(path.with_name("vocoder.yaml"))
    assert raw["vocoder"] == "nsf_vocos"
    vocoder = NsfVocos(parse(NsfVocosSettings, raw["nsf_vocos"], "vocoder.yaml"))
    weights.fill(vocoder, {k: v.float() for k, v in weights.read(path).items()}, str(path))


def with_a_flow(folder) -> str:
    """The folder of a random flow, and tokens in the rows of the list."""
    training(folder, "none", 1)
    rows = folder / "voices.list"
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["extra"] = {"speech_token": [1, 2, 3] * 6}
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    made = folder / "flow"
    made.mkdir()
    sizes = yaml.safe_dump({"flow": json.loads(json.dumps(asdict(FLOW)))})
    (made / "flow.yaml").write_text(sizes, encoding="utf-8")
    save_file(tiny_flow().state_dict(), made / "flow.safetensors")
    return str(made)


def test_with_a_flow_its_mels_are_learnt_from_beside_the_true_ones(tmp_path):
    flow = with_a_flow(tmp_path)
    asked = training(tmp_path, "out", 1, flow=flow, flow_share=1.0)
    recordings = train_vocoder.read(asked)
    assert all(one.made is not None and one.made.shape == one.mel.shape for one in recordings)
    again = train_vocoder.read(asked)
    assert torch.equal(recordings[0].made, again[0].made)
    trainer = train_vocoder.VocoderTrainer(asked, recordings)
    seen = trainer.crops(16).mel[0]
    stretches = (one.made.unfold(1, 16, 1).transpose(0, 1) for one in recordings)
    assert any((each == seen).flatten(1).all(1).any() for each in stretches)


def test_a_row_without_tokens_is_refused_where_a_flow_is_given(tmp_path):
    made = tmp_path / "flow"
    with_a_flow(tmp_path)
    (tmp_path / "voices.list").unlink()
    with pytest.raises(DataError, match=r"no extra\.speech_token"):
        train_vocoder.read(training(tmp_path, "out", 1, flow=str(made)))


def test_the_losses_are_nothing_for_the_same_wave():
    wave = torch.randn(2, 4096)
    mel, spectral = train_vocoder.wave_losses(wave, wave)
    assert mel == 0
    assert spectral == 0
    assert all(loss > 0.1 for loss in train_vocoder.wave_losses(0.3 * wave, wave))


def test_crops_too_short_for_the_losses_are_refused():
    with pytest.raises(ConfigError, match="crop_frames 4"):
        VocoderTraining(("a",), "b", LimitSettings(steps=1), crop_frames=4)
