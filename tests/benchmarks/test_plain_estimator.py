"""The estimator that ours is timed beside computes the same."""

import torch

from benchmarks.plain_estimator import velocity
from tests.token2wav.tiny_flow import tiny_flow


def test_the_plain_estimator_gives_what_ours_gives():
    estimator, drawn = tiny_flow().decoder.estimator, torch.Generator().manual_seed(0)
    x, mu, known = torch.randn(3, 2, 31, 80, generator=drawn)
    told = x, mu, torch.tensor([0.1, 0.7]), torch.randn(2, 80, generator=drawn), known
    with torch.no_grad():
        assert torch.allclose(velocity(estimator, *told), estimator(*told), atol=1e-5)
