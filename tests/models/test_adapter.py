"""Claims about the adapter: causal, a quarter of the steps, padding changes nothing."""

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.models.adapter import Adapter, AdapterSettings


def adapter() -> Adapter:
    torch.manual_seed(1)
    return Adapter(AdapterSettings(heads=2, units=12, blocks=2), 8, 10).eval()


@pytest.mark.parametrize(("steps", "fewer"), [(1, 1), (4, 1), (5, 2), (155, 39)])
def test_four_steps_become_one_rounded_up(steps, fewer):
    out, lengths = adapter()(torch.zeros(1, steps, 8), torch.tensor([steps]))
    assert out.shape == (1, fewer, 10) and lengths.tolist() == [fewer]


def test_a_longer_neighbour_does_not_change_a_clip():
    model, steps = adapter(), torch.randn(2, 30, 8)
    with torch.no_grad():
        together, lengths = model(steps, torch.tensor([30, 13]))
        alone, _ = model(steps[1:, :13], torch.tensor([13]))
    assert lengths.tolist() == [8, 4]
    assert torch.allclose(together[1, :4], alone[0], atol=1e-5)


def test_the_convolutions_see_no_later_step():
    model, steps = adapter(), torch.randn(1, 20, 8)
    changed = steps.clone()
    changed[:, 13:] = 7.0
    before, _ = model.subsample(steps, torch.tensor([20]))
    after, _ = model.subsample(changed, torch.tensor([20]))
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"adapter\.heads 3"):
        Adapter(AdapterSettings(heads=3), 8, 10)
