"""Claims about attention of packed rows: every way gives what each sequence gives alone."""

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.models import attention
from osum_echat.sequence import collate
from tests.tiny_network import VOCAB, network, row

CPU, CARD = torch.device("cpu"), torch.device("meta")
SEQUENCES = [row("t2t"), row("tts"), row("t2t", text="you and me"), row("tts"), row("t2t")]
ROWS = [SEQUENCES[:3], SEQUENCES[3:]]
HERE = ("mask", "eager", "segments")


def model_of(way: str):
    model = network()
    model.attend_by(way)
    return model


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("way", HERE)
def test_packed_equals_unpacked_in_values_and_gradients(way, recompute):
    model = model_of(way).train()
    if recompute:
        model.recompute_activations()
    packed, alone = collate(ROWS, VOCAB), network().train()
    assert not packed.valid.all()
    embedded = model.embed(packed).detach().requires_grad_()
    hidden = model.run(embedded, packed.segments, packed.positions)
    weight = torch.linspace(-1, 1, hidden.shape[-1]) / 100  # gradients of about 1
    (hidden[packed.valid] * weight).sum().backward()
    for number, one in enumerate(ROWS):
        start = 0
        for sequence in one:
            batch = collate([[sequence]], VOCAB)
            own = alone.embed(batch).detach().requires_grad_()
            expected = alone.run(own, batch.segments, batch.positions)
            (expected * weight).sum().backward()
            at = slice(start, start + len(sequence))
            assert torch.allclose(hidden[number, at], expected[0], atol=1e-5)
            assert torch.allclose(embedded.grad[number, at], own.grad[0], atol=1e-5)
            start += len(sequence)
    theirs = dict(alone.llm.named_parameters())
    for name, ours in model.llm.named_parameters():
        if ours.grad is not None:
            scale = max(1.0, float(theirs[name].grad.abs().max()))
            assert torch.allclose(ours.grad / scale, theirs[name].grad / scale, atol=1e-5), name


@pytest.mark.parametrize("way", HERE)
def test_a_sequence_with_holes_is_kept_whole(way):
    segments = torch.tensor([[0, 0, -1, 0, 1, 1, -1, -1]])
    positions = torch.tensor([[0, 1, 0, 2, 0, 1, 0, 0]])
    embedded = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model_of(way).run(embedded, segments, positions)
        dense = network().run(embedded[:, [0, 1, 3]], torch.zeros(1, 3), positions[:, [0, 1, 3]])
    assert torch.allclose(found[:, [0, 1, 3]], dense, atol=1e-5)


def test_what_fits_the_device_is_chosen_and_another_name_refused():
    assert attention.chosen("auto", CPU) == "segments"
    assert attention.chosen("auto", CARD) == "mask"
    with pytest.raises(ConfigError, match="'spda' is not one of auto, mask, eager, segments"):
        attention.chosen("spda", CPU)
