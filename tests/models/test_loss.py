"""Claims about the loss without logits: equal to the plain one, whatever the chunks."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.models.loss import TokenLosses, cross_entropy

TEXT, SPEECH, WIDTH, TOKENS = 70, 13, 12, 40


def inputs(joint_share: float = 0.5) -> tuple[list[Tensor], Tensor, Tensor]:
    """Leaves (states, text, speech, bias), targets, and which tokens are joint."""
    generator = torch.Generator().manual_seed(4)
    shapes = ((TOKENS, WIDTH), (TEXT, WIDTH), (SPEECH, WIDTH), (SPEECH,))
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    joint = torch.rand(TOKENS, generator=generator) < joint_share
    either = torch.randint(0, TEXT + SPEECH, (TOKENS,), generator=generator)
    return leaves, torch.where(joint, either, either % TEXT), joint


def plain(leaves: list[Tensor], targets: Tensor, joint: Tensor) -> TokenLosses:
    """The same from whole logits."""
    states, text, speech, bias = leaves
    logits = torch.cat((states @ text.T, states @ speech.T + bias), -1).float()
    hidden = ~joint[:, None] & (torch.arange(TEXT + SPEECH) >= TEXT)
    logits = logits.masked_fill(hidden, -torch.inf)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return TokenLosses(losses.sum(), losses, logits.argmax(-1) == targets)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("chunk_logits", [1, 3 * (TEXT + SPEECH), 10**6])
def test_loss_and_gradients_are_those_of_whole_logits(share: float, chunk_logits: int) -> None:
    ours, theirs = inputs(share), inputs(share)
    (states, *heads), targets, joint = ours
    made = cross_entropy(states, targets, joint, *heads, chunk_logits=chunk_logits)
    wanted = plain(*theirs)
    torch.testing.assert_close(made.total, wanted.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.losses, wanted.losses.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(made.right, wanted.right)
    (0.3 * made.total).backward()
    (0.3 * wanted.total).backward()
    for one, other in zip(ours[0], theirs[0], strict=True):
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        got = torch.zeros_like(one) if one.grad is None else one.grad
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_part_gets_no_gradient_and_the_rest_the_same() -> None:
    (states, text, *speech), targets, joint = inputs()
    cross_entropy(states, targets, joint, text, *speech).total.backward()
    (moving, frozen, *still), _, _ = inputs()
    for one in (frozen, *still):
        one.requires_grad_(False)
    cross_entropy(moving, targets, joint, frozen, *still).total.backward()
    assert moving.grad is not None and states.grad is not None and frozen.grad is None
    assert torch.equal(moving.grad, states.grad)


def test_without_a_spoken_token_the_speech_head_has_no_gradient() -> None:
    (states, text, speech, bias), targets, joint = inputs(0.0)
    cross_entropy(states, targets, joint, text, speech, bias).total.backward()
    assert text.grad is not None and speech.grad is None and bias.grad is None


def test_under_autocast_the_loss_is_that_of_the_plain_one_under_autocast() -> None:
    ours, theirs = inputs(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        (states, *heads), targets, joint = ours
        made, wanted = cross_entropy(states, targets, joint, *heads), plain(*theirs)
    torch.testing.assert_close(made.total, wanted.total, rtol=1e-3, atol=1e-3)
    made.total.backward()
    wanted.total.backward()
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert one.grad is not None and one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=0.05)


def test_a_logit_that_is_not_a_number_makes_the_loss_not_one() -> None:
    (states, text, speech, bias), targets, joint = inputs(1.0)
    with torch.no_grad():
        bias[3] = torch.nan
    assert cross_entropy(states, targets, joint, text, speech, bias).total.isnan()
