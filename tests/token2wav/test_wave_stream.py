"""Claims about sound made in pieces: given the same mel, both vocoders make the same wave."""

import pytest
import torch

from osum_echat.token2wav.hift import Hift
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings, pulse_train
from osum_echat.token2wav.voice import HOP_SAMPLES
from osum_echat.token2wav.wave_stream import Vocoder, WaveStream, blended, whole_wave
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
    return [
        stream.push(mel()[:, :, start : stop + ahead], stop - start)
        for start, stop in zip(CUTS, CUTS[1:], strict=False)
    ]


def whole(vocoder: Vocoder, seed: int = 1) -> torch.Tensor:
    return whole_wave(vocoder, mel(), torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize("name", VOCODERS)
def test_pieces_of_a_mel_sound_as_the_whole(name: str):
    vocoder = VOCODERS[name]()
    made, wanted = torch.cat(streamed(vocoder, vocoder.reach_frames)), whole(vocoder)
    assert made.shape == wanted.shape == (FRAMES * HOP_SAMPLES,)
    assert wanted.std() > 1e-3
    assert (made - wanted).abs().max() < 2e-2 * wanted.abs().max()


def test_the_mel_of_these_tests_is_voiced_in_some_frames_and_not_in_others():
    voiced = nsf_vocos().pitch_predictor.pitch(mel()) > 0
    assert 0.1 < voiced.float().mean() < 0.9
    assert (voiced[:, 1:] != voiced[:, :-1]).sum() > 4


@pytest.mark.parametrize("name", VOCODERS)
def test_a_piece_that_cannot_look_ahead_still_joins_without_a_step(name: str):
    vocoder = VOCODERS[name]()
    pieces, wanted = streamed(vocoder, 0), whole(vocoder)
    made = torch.cat(pieces)
    joins = torch.tensor([len(piece) for piece in pieces]).cumsum(0)[:-1] - 1
    assert made.shape == wanted.shape
    assert made.diff().abs()[joins].max() <= wanted.diff().abs().max()


@pytest.mark.parametrize("name", VOCODERS)
def test_what_is_kept_of_the_past_is_bounded(name: str):
    vocoder = VOCODERS[name]()
    stream = WaveStream(vocoder, torch.Generator().manual_seed(1), fade_frames=1)
    for _ in range(3):
        stream.push(mel(), FRAMES)
        assert stream.past.frames == vocoder.reach_frames


@pytest.mark.parametrize("name", VOCODERS)
def test_frames_beyond_the_reach_change_nothing(name: str):
    vocoder = VOCODERS[name]()
    changed = mel()
    changed[:, :, 120:] += 1.0
    first, second = (
        whole_wave(vocoder, one, torch.Generator().manual_seed(1))[0] for one in (mel(), changed)
    )
    end = (120 - vocoder.reach_frames) * HOP_SAMPLES
    assert torch.allclose(first[:end], second[:end], atol=1e-5)
    assert not torch.allclose(first[end:], second[end:], atol=1e-3)


def test_pulses_begin_with_the_first_voiced_frame():
    late = pulse_train(torch.tensor([[0.0] * 3 + [130.0] * 5]))[0]
    soon = pulse_train(torch.full((1, 5), 130.0))[0]
    assert torch.allclose(late[3 * HOP_SAMPLES :], soon, atol=1e-4)


def test_a_blend_goes_from_the_old_to_the_new_and_keeps_what_is_equal():
    old, new = torch.zeros(2, 4), torch.ones(2, 10)
    mixed = blended(old, new, 1)
    assert mixed.shape == new.shape
    assert torch.all(mixed.diff(dim=1) >= 0)
    assert torch.equal(mixed[:, 4:], new[:, 4:])
    assert torch.equal(blended(new[:, :4], new, 1), new)
    assert torch.equal(blended(torch.zeros(2, 0), new, 1), new)
