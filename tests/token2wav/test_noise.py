"""Claims about the noise of a call: pieces, seeds and uses do not change each other's numbers."""

import pytest
import torch

from osum_echat.token2wav.noise import NoiseRows, streams


def rows(seed: int = 1) -> NoiseRows:
    return NoiseRows(80, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cuts", [(0, 300), (0, 1, 64, 65, 200, 300), (0, 250, 250, 300)])
def test_a_row_does_not_depend_on_the_pieces(cuts: tuple[int, ...]):
    stream = rows()
    made = [stream.take(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]
    assert torch.equal(torch.cat(made), rows().take(0, 300))


def test_pieces_may_overlap_and_what_is_passed_is_forgotten():
    stream, whole = rows(), rows().take(0, 100)
    assert torch.equal(stream.take(0, 50), whole[:50])
    assert torch.equal(stream.take(30, 100), whole[30:])
    assert len(stream.rows) <= 100 - 30 + 64
    with pytest.raises(AssertionError, match="row 29 was forgotten"):
        stream.take(29, 40)


def test_rows_are_standard_normal():
    drawn = rows().take(0, 1000)
    assert abs(drawn.mean().item()) < 0.02
    assert drawn.std().item() == pytest.approx(1, abs=0.02)


def test_the_uses_of_one_seed_differ_and_the_same_seed_gives_the_same():
    first, again = streams(7), streams(7)
    drawn = [torch.randn(5, generator=each) for each in first]
    assert all(
        torch.equal(one, torch.randn(5, generator=other))
        for one, other in zip(drawn, again, strict=True)
    )
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(3)
    first = torch.randn(5, generator=streams(None).flow)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(5, generator=streams(None).flow), first)
    assert not torch.equal(torch.randn(5, generator=streams(None).flow), first)
