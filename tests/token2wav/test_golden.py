"""Claims about token to wav as published: the cut fixture is matched, array by array."""

from pathlib import Path

import numpy as np
import pytest
import torch

from osum_echat import audio
from osum_echat.errors import CheckpointError
from osum_echat.token2wav.voice import prompt_mel, speaker_features
from tests.parity.token2wav import rows

GOLDENS = Path(__file__).parents[1] / "goldens"
FRAME_STEP = 4


@pytest.fixture(scope="module")
def heard() -> dict[str, torch.Tensor]:
    with np.load(GOLDENS / "token2wav_frontend.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def test_flow_and_vocoder_match_the_published_ones():
    found = rows(GOLDENS / "token2wav")
    assert not [row for row in found if row.status == "falls short"]
    compared = {row.name for row in found if row.status == "ok"}
    wanted = {"flow_tok40.mel", "flow_tok1.mel", "flow_train.loss", "flow_train.grad_norm",
              "estimator_padded.out", "hift_one.wav", "hift weights, generator. prefix"}
    assert wanted <= compared


def test_a_changed_weight_falls_short(tmp_path: Path):
    for name in ("config.json", "flow_tok1.npz"):
        (tmp_path / name).symlink_to(GOLDENS / "token2wav" / name)
    tensors = torch.load(GOLDENS / "token2wav" / "flow.pt", weights_only=True)
    tensors["decoder.estimator.final_proj.bias"] += 1e-3
    torch.save(tensors, tmp_path / "flow.pt")
    assert "flow_tok1.mel" in {row.name for row in rows(tmp_path) if row.status == "falls short"}


def test_a_fixture_of_other_sizes_is_refused_with_the_sizes_that_differ(tmp_path: Path):
    (tmp_path / "flow.pt").symlink_to(GOLDENS / "token2wav" / "flow.pt")
    config = (GOLDENS / "token2wav" / "config.json").read_text(encoding="utf-8")
    wrong = config.replace('"linear_units": 64', '"linear_units": 65')
    (tmp_path / "config.json").write_text(wrong, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"w_1\.bias \[64\] there, \[65\] by the settings"):
        rows(tmp_path)


def test_the_prompt_mel_is_the_published_one(heard: dict[str, torch.Tensor]):
    ours = prompt_mel(heard["wav22050"])[0, ::FRAME_STEP]
    assert (ours - heard["prompt_mel"]).abs().max() <= 1e-6


def test_the_speaker_features_are_the_published_ones(heard: dict[str, torch.Tensor]):
    ours = speaker_features(heard["wav16000"])[0, ::FRAME_STEP]
    assert (ours - heard["speaker_features"]).abs().max() <= 5e-4


def test_the_tokenizer_features_are_the_published_ones(heard: dict[str, torch.Tensor]):
    ours = audio.log_mel(heard["wav16000"], 128)[::FRAME_STEP]
    assert (ours - heard["log_mel_128"]).abs().max() <= 1e-6
