"""Claims about the vocoders: sound in pieces, seeds, lengths; and of each its own."""

import pytest
import torch

from osum_echat.token2wav.hift import Hift
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.token2wav.streaming import Vocoder, WaveStream, whole_wave
from osum_echat.token2wav.voice import HOP_SAMPLES
from tests.token2wav.tiny_flow import tiny_hift

FRAMES = 240
CUTS = (0, 3, 60, 61, 150, FRAMES)


def hift() -> Hift:
    """Random weights that hear voiced and unvoiced frames, and pitches far apart."""
    made = tiny_hift()
    torch.nn.init.normal_(made.f0_predictor.classifier.weight, std=800.0)
    return made


def nsf_vocos() -> NsfVocos:
    torch.manual_seed(6)
    made = NsfVocos(NsfVocosSettings(width=16, blocks=2, pitch_width=8, pitch_blocks=1)).eval()
    torch.nn.init.normal_(made.pitch_predictor.head.weight, std=3.0)
    torch.nn.init.normal_(made.head.weight, std=0.2)
    with torch.no_grad():
        made.pitch_predictor.head.bias[0] -= made.pitch_predictor(mel())[0].median()
    return made


VOCODERS = {"hift": hift, "nsf_vocos": nsf_vocos}


def mel() -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(1, 80, FRAMES).cumsum(2).mul(0.2).sin() * 3 - 3


def streamed(vocoder: Vocoder, ahead: int, seed: int = 1) -> list[torch.Tensor]:
    stream = WaveStream(vocoder, torch.Generator().manual_seed(seed), fade_frames=1)
    return [stream.push(mel()[:, :, start : stop + ahead], stop - start)
            for start, stop in zip(CUTS, CUTS[1:], strict=False)]  # fmt: skip


def whole(vocoder: Vocoder, seed: int = 1) -> torch.Tensor:
    return whole_wave(vocoder, mel(), torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize("name", VOCODERS)
def test_pieces_of_a_mel_sound_as_the_whole_and_join_without_a_step(name: str):
    vocoder = VOCODERS[name]()
    made, wanted = torch.cat(streamed(vocoder, vocoder.reach_frames)), whole(vocoder)
    assert made.shape == wanted.shape == (FRAMES * HOP_SAMPLES,) and wanted.std() > 1e-3
    assert (made - wanted).abs().max() < 2e-2 * wanted.abs().max()
    pieces = streamed(vocoder, 0)
    made = torch.cat(pieces)
    joins = torch.tensor([len(piece) for piece in pieces]).cumsum(0)[:-1] - 1
    assert made.shape == wanted.shape
    assert made.diff().abs()[joins].max() <= wanted.diff().abs().max()


@pytest.mark.parametrize("name", VOCODERS)
def test_a_mel_becomes_256_samples_a_frame_by_its_seed_and_little_is_kept(name: str):
    vocoder = VOCODERS[name]()
    first, again, other = (whole(vocoder, seed) for seed in (1, 1, 2))
    assert first.shape == (FRAMES * HOP_SAMPLES,) and first.abs().max() <= 0.99
    assert torch.equal(first, again) and not torch.equal(first, other)
    stream = WaveStream(vocoder, torch.Generator().manual_seed(1), fade_frames=1)
    for _ in range(3):
        stream.push(mel(), FRAMES)
        assert stream.past.frames == vocoder.reach_frames


# NSF-Vocos

TINY = NsfVocosSettings(width=16, blocks=1, pitch_width=8, pitch_blocks=1)


def tiny() -> NsfVocos:
    torch.manual_seed(3)
    return NsfVocos(TINY)


def test_the_pitch_loss_falls_for_the_true_pitch():
    predictor = tiny().pitch_predictor
    mel, hertz = torch.randn(2, 80, 12), torch.tensor([[110.0] * 12, [0.0] * 12])
    optimizer = torch.optim.Adam(predictor.parameters(), 1e-2)
    before = predictor.loss(mel, hertz)
    for _ in range(150):
        optimizer.zero_grad()
        predictor.loss(mel, hertz).backward()
        optimizer.step()
    assert predictor.loss(mel, hertz) < 0.3 * before
    assert 1200 * abs(torch.log2(predictor.pitch(mel)[0].median() / 110)) < 60
