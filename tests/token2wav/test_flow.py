"""Claims about the flow: lengths, guards, seeds, prompts, normalisation, padding."""

from dataclasses import replace

import pytest
import torch

from osum_echat.token2wav.flow import draw, frames_for
from osum_echat.token2wav.voice import VoicePrompt
from tests.parity.token2wav import mel_of
from tests.token2wav.tiny_flow import CODES, FLOW, tiny_flow

TOKENS = torch.arange(9).view(1, -1)


def voice(tokens: int, frames: int) -> VoicePrompt:
    torch.manual_seed(8)
    return VoicePrompt(
        torch.randint(0, CODES, (1, tokens)), torch.randn(1, frames, 80), torch.randn(1, 192)
    )


def test_normalisation_reaches_the_loss():
    flow = tiny_flow(replace(FLOW, mel_mean=-5.5, mel_scale=2.2))
    mel = torch.randn(2, 31, 80)
    draws = draw(torch.tensor([31, 31]), 31, torch.Generator().manual_seed(0))
    tokens, speaker = torch.randint(0, CODES, (2, 9)), torch.zeros(2, 192)
    normal = tiny_flow().loss(tokens, mel, speaker, draws)
    scaled = flow.loss(tokens, mel * 2.2 - 5.5, speaker, draws)
    assert scaled.matching.item() == pytest.approx(normal.matching.item(), rel=1e-4)
    assert scaled.mu.item() == pytest.approx(normal.mu.item(), rel=1e-4)


@pytest.mark.parametrize("prompt", [voice(5, 17), voice(0, 0)])
def test_rows_solved_side_by_side_are_as_if_each_were_alone(prompt: VoicePrompt):
    flow, drawn = tiny_flow(), torch.Generator().manual_seed(0)
    state = flow.voice_state(prompt)
    rows = [torch.randint(0, CODES, (size,), generator=drawn) for size in (1, 9, 20, 53)]
    lengths = [state.known.shape[1] + frames_for(len(row), 25) for row in rows]
    noises = [torch.randn(80, length, generator=drawn) for length in lengths]
    alone = [flow.mels([row], state, [noise])[0] for row, noise in zip(rows, noises, strict=True)]
    for one, other in zip(flow.mels(rows, state, noises), alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_draws_keep_their_shares_and_limits():
    lengths = torch.full((2000,), 100)
    draws = draw(lengths, 100, torch.Generator().manual_seed(0), drop=0.2, prefix=0.5)
    assert 0.77 < draws.kept.float().mean() < 0.83
    assert 0.45 < (draws.known > 0).float().mean() < 0.52 and draws.known.max() == 30
    assert draws.times.mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_flow_that_starts_at_the_mean_stays_there_and_is_taught_it_by_l1_alone():
    conformer = replace(FLOW.conformer, kernel=3)
    flow = tiny_flow(replace(FLOW, mean_start=0.5, guidance=0.0, conformer=conformer))
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.weight)
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.bias)
    tokens = torch.arange(30)[None] % CODES
    quiet = mel_of(flow, tokens)
    speaker = torch.zeros(1, FLOW.speaker_width)
    speaker[0, 0] = 1.0
    # The mean knows who speaks.
    assert not torch.allclose(quiet, mel_of(flow, tokens, VoicePrompt.absent(speaker)))
    noise = torch.randn(1, 80, quiet.shape[2])
    moved = mel_of(flow, tokens, None, noise) - quiet
    assert torch.allclose(moved, 0.5 * FLOW.mel_scale * noise, atol=1e-5)
    flow = tiny_flow(replace(FLOW, mean_start=0.5, guidance=0.0))
    draws = draw(torch.tensor([20]), 20, torch.Generator().manual_seed(0))
    loss = flow.loss(TOKENS, torch.randn(1, 20, 80), torch.zeros(1, FLOW.speaker_width), draws)
    taught = flow.encoder_proj.weight
    moved = torch.autograd.grad(loss.matching, taught, retain_graph=True, allow_unused=True)
    assert moved == (None,) and torch.autograd.grad(loss.mu, taught)[0].abs().sum() > 0
