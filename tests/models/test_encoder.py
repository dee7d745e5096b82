"""Claims about the encoder: lengths, and that a longer neighbour changes nothing."""

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.models.encoder import Encoder, EncoderSettings


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderSettings(mels=6, width=8, heads=2, units=16, blocks=2)).eval()


def hear(model: Encoder, mels: torch.Tensor, *lengths: int) -> tuple[torch.Tensor, list[int]]:
    with torch.no_grad():
        steps, counts = model(mels, torch.tensor(lengths))
    return steps, counts.tolist()


@pytest.mark.parametrize(
    ("padded", "frames", "steps"),
    [(10, 10, 5), (11, 11, 6), (10, 9, 4), (11, 9, 5), (10, 8, 4), (11, 8, 4)],
)
def test_the_mask_is_sliced_from_where_the_padded_length_says(padded, frames, steps):
    _, counts = hear(encoder(), torch.zeros(2, padded, 6), padded, frames)
    assert counts == [(padded + 1) // 2, steps]


def test_a_longer_neighbour_does_not_change_a_clip_of_even_length():
    model, mels = encoder(), torch.randn(2, 21, 6)
    mels[1, 12:] = 0.0
    together, _ = hear(model, mels, 21, 12)
    alone, _ = hear(model, mels[1:, :12], 12)
    assert torch.allclose(together[1, :6], alone[0], atol=1e-6)


def test_keys_have_no_bias():
    names = encoder().state_dict()
    assert "encoders.0.self_attn.linear_q.bias" in names
    assert "encoders.0.self_attn.linear_k.bias" not in names


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"encoder\.heads 3"):
        EncoderSettings(width=8, heads=3)
