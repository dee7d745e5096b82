"""Claims about the shared layers: masks and position tables."""

import torch

from osum_echat.models.layers import interleaved_sinusoid, split_sinusoid, valid_mask


def test_no_mask_is_made_when_nothing_is_padded():
    assert valid_mask(torch.tensor([4, 4]), 4) is None
    mask = valid_mask(torch.tensor([4, 2]), 4)
    assert mask is not None and mask[:, 0, 0].tolist() == [[True] * 4, [True, True, False, False]]


def test_the_tables_hold_the_same_sines_in_different_places():
    split, interleaved = split_sinusoid(50, 8), interleaved_sinusoid(50, 8)
    assert torch.equal(split[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    assert torch.equal(interleaved[0], torch.tensor([0.0, 1.0] * 4))
    assert torch.allclose(split[:, 0], interleaved[:, 0])  # rate 1
    assert torch.allclose(split[7, 3], torch.sin(torch.tensor(7 / 10_000)))
