"""Claims about the pitch tracker."""

import numpy as np
import pytest

from common_utils.token2wav_recipe import pitch

RATE_HZ, HOP_SAMPLES = 16_000, 160


def buzz(hertz: np.ndarray) -> np.ndarray:
    """Ten harmonics along a pitch given for each sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE_HZ
    return sum(np.sin(number * phase) / number for number in range(1, 11)).astype(np.float32)


@pytest.mark.parametrize("hertz", [70.0, 118.0, 240.0, 390.0])
def test_a_steady_voice_has_its_pitch_within_ten_cents(hertz):
    found = pitch.track(buzz(np.full(RATE_HZ // 2, hertz)), RATE_HZ, HOP_SAMPLES)
    inside = found[4:-4]
    assert (inside > 0).all()
    assert np.abs(1200 * np.log2(inside / hertz)).max() < 10


def test_a_glide_is_followed_hop_by_hop():
    hertz = np.linspace(90, 160, RATE_HZ // 2)
    found = pitch.track(buzz(hertz), RATE_HZ, HOP_SAMPLES)[5:-5]
    true = hertz[HOP_SAMPLES // 2 :: HOP_SAMPLES][5:-5]
    assert np.abs(1200 * np.log2(found / true)).max() < 40


def test_noise_and_silence_are_unvoiced():
    noise = np.random.default_rng(1).normal(0, 0.1, RATE_HZ // 2).astype(np.float32)
    assert (pitch.track(noise, RATE_HZ, HOP_SAMPLES) > 0).mean() < 0.1
    silence = np.zeros(RATE_HZ // 4, np.float32)
    assert not pitch.track(silence, RATE_HZ, HOP_SAMPLES).any()
