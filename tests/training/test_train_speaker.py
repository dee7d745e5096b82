"""Claims about the training of the speaker encoder."""

import importlib.util
from pathlib import Path

import pytest
import torch

from common_utils.token2wav_recipe import train_speaker
from common_utils.token2wav_recipe.runs import LimitSettings
from common_utils.token2wav_recipe.train_speaker import SpeakerSettings, SpeakerTraining
from osum_echat.errors import ConfigError, DataError
from osum_echat.token2wav.voice import SpeakerEncoder

SPEC = importlib.util.spec_from_file_location("voices", Path(__file__).with_name("voices.py"))
voices = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(voices)


def training(folder, pitches, steps=2) -> SpeakerTraining:
    rows = voices.write_voices(folder, pitches, rows=3)
    return SpeakerTraining(
        (str(rows),), str(folder / "out"), LimitSettings(steps=steps),
        speaker=SpeakerSettings(width=8), batch=4, crop_frames=20,
    )


def test_voices_are_told_apart_after_a_few_steps(tmp_path):
    asked = training(tmp_path, {"low": 90.0, "high": 310.0})
    trainer = train_speaker.SpeakerTrainer(asked, train_speaker.read(asked))
    for _ in range(30):
        trainer.step()
    assert trainer.score()["held_out_right"] == 1


def test_a_length_of_frames_does_not_change_the_vectors_size(tmp_path):
    net = train_speaker.SpeakerNet(SpeakerSettings(width=8)).eval()
    assert net(torch.randn(1, 3, 80)).shape == net(torch.randn(1, 90, 80)).shape == (1, 192)


def test_one_voice_alone_is_refused(tmp_path):
    with pytest.raises(DataError, match="need two voices"):
        train_speaker.read(training(tmp_path, {"low": 90.0}))


def test_kernels_and_dilations_go_together():
    with pytest.raises(ConfigError, match="as many of each"):
        SpeakerSettings(kernels=(3, 3), dilations=(1,))


@pytest.mark.slow
def test_the_exported_file_hears_any_length(tmp_path):
    path = train_speaker.train(training(tmp_path, {"low": 90.0, "high": 310.0}))
    listen = SpeakerEncoder(path)
    assert all(listen(torch.randn(size)).shape == (1, 192) for size in (4000, 16000))
