"""Claims about HiFT: length, seeds, and every published naming of its weights."""

import torch

from osum_echat.token2wav.hift import fold
from tests.token2wav.tiny_flow import tiny_hift

MEL = torch.linspace(-8, 0, 80 * 6).view(1, 80, 6)


def split_norm(tensors: dict[str, torch.Tensor], names: tuple[str, str], prefix: str = ""):
    """Weights as a length and a direction that is three times too long."""
    split = {}
    for key, value in tensors.items():
        if key.endswith("weight") and value.dim() == 3 and "source_downs" not in key:
            size = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            stem = prefix + key.removesuffix("weight")
            split |= {stem + names[0]: size, stem + names[1]: value * 3}
        else:
            split[prefix + key] = value
    return split


def test_a_mel_becomes_256_samples_a_frame_within_the_limit():
    wave = tiny_hift().wave(MEL, torch.Generator().manual_seed(0))
    assert wave.shape == (1, 6 * 256)
    assert wave.abs().max() <= 0.99


def test_the_same_seed_gives_the_same_wave_and_another_seed_another():
    hift = tiny_hift()
    first, again, other = (
        hift.wave(MEL, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_naming_of_weight_norm_gives_the_same_weights():
    plain = tiny_hift().state_dict()
    new = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    for names, prefix in ((("weight_g", "weight_v"), ""), (new, ""), (new, "generator.")):
        folded = fold(split_norm(plain, names, prefix))
        assert folded.keys() == plain.keys()
        assert all(torch.allclose(folded[key], plain[key], atol=1e-6) for key in plain)


def test_a_training_checkpoint_loses_its_discriminator():
    assert fold({"generator.conv_pre.bias": MEL, "discriminator.x.bias": MEL}).keys() == {
        "conv_pre.bias"
    }


def test_a_silent_pitch_gives_noise_without_sines():
    hift = tiny_hift()
    phase, noise = torch.zeros(1, 9, 1), torch.zeros(1, 9, 512)
    assert not hift.sines(torch.zeros(1, 2), phase, noise).any()
    assert hift.sines(torch.full((1, 2), 200.0), phase, noise).abs().max() > 0.09
