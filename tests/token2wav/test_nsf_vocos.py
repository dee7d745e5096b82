"""Claims about the NSF-Vocos vocoder."""

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.token2wav import nsf_vocos
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.token2wav.voice import HOP_SAMPLES, SAMPLE_RATE_HZ, prompt_mel

TINY = NsfVocosSettings(width=16, blocks=1, pitch_width=8, pitch_blocks=1)


def tiny() -> NsfVocos:
    torch.manual_seed(3)
    return NsfVocos(TINY)


def buzz(hertz: float, frames: int) -> torch.Tensor:
    return nsf_vocos.pulse_train(torch.full((1, frames), hertz))[0]


def test_a_wave_has_256_samples_a_frame_within_one():
    wave = tiny().wave(torch.randn(1, 80, 9) - 5, torch.Generator().manual_seed(1))
    assert wave.shape == (1, 9 * HOP_SAMPLES)
    assert wave.abs().max() <= 1


def test_the_same_generator_gives_the_same_wave():
    vocoder, mel = tiny(), torch.randn(1, 80, 9) - 5
    waves = [vocoder.wave(mel, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(waves[0], waves[1])
    assert not torch.equal(waves[0], waves[2])


def test_without_gains_a_voice_keeps_its_mel():
    voice = 0.1 * buzz(140.0, 40)
    mel = prompt_mel(voice).transpose(1, 2)
    untrained = tiny()
    torch.nn.init.zeros_(untrained.head.weight)
    untrained.head.bias.data[nsf_vocos.BINS : 2 * nsf_vocos.BINS] = -9      # no noise
    made = untrained(mel, torch.full((1, 40), 140.0), torch.randn(1, 40 * HOP_SAMPLES))
    again = prompt_mel(made[0].detach()).transpose(1, 2)
    assert (again - mel)[:, :40, 4:-4].abs().mean() < 0.5


def test_pulses_have_power_one_and_only_harmonics():
    pulses = buzz(SAMPLE_RATE_HZ / 200, 50)         # a period of 200 samples
    assert pulses.square().mean() == pytest.approx(1, rel=0.05)
    power = torch.fft.rfft(pulses[: 200 * 50]).abs().square()
    assert power[::50].sum() / power.sum() > 0.99


def test_pulses_are_silent_where_nothing_is_voiced():
    assert not nsf_vocos.pulse_train(torch.zeros(2, 5)).any()
    half = nsf_vocos.pulse_train(torch.tensor([[120.0, 120.0, 0.0, 0.0]]))[0]
    assert half[: 2 * HOP_SAMPLES].any()
    assert not half[2 * HOP_SAMPLES :].any()


def test_joined_undoes_spectrum():
    samples = torch.randn(2, 12 * HOP_SAMPLES)
    scale = torch.hann_window(1024).norm()
    again = nsf_vocos.joined(nsf_vocos.spectrum(samples) * scale)
    assert torch.allclose(again, samples, atol=1e-4)


def test_pitch_stays_within_its_range():
    hertz = tiny().pitch_predictor.pitch(4 * torch.randn(1, 80, 30))
    voiced = hertz[hertz > 0]
    assert hertz.shape == (1, 30)
    assert ((voiced >= nsf_vocos.LOWEST_HZ) & (voiced <= nsf_vocos.HIGHEST_HZ)).all()


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


def test_an_even_kernel_is_refused():
    with pytest.raises(ConfigError, match="must be odd"):
        NsfVocosSettings(kernel=4)
