"""Claims about a voice that is solved once: what it saves, keeps, and leaves as it was."""

from dataclasses import replace

import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.token2wav.flow import Flow, VoiceState
from osum_echat.token2wav.memory import AGAIN_FRAMES, Kept, Passing
from osum_echat.token2wav.model import Token2Wav
from osum_echat.token2wav.voice import VoicePrompt
from tests.token2wav.tiny_flow import CODES, FLOW, tiny_flow, write_directory

FRAMES = 61
TOKENS = torch.arange(9).view(1, -1)


def voice(frames: int = FRAMES) -> VoicePrompt:
    torch.manual_seed(8)
    return VoicePrompt(
        torch.randint(0, CODES, (1, 18)), torch.randn(1, frames, 80), torch.randn(1, 192)
    )


def remembered(flow: Flow, frames: int = FRAMES) -> VoiceState:
    noise = torch.randn(80, frames, generator=torch.Generator().manual_seed(1))
    return flow.remembered(flow.voice_state(voice(frames)), noise)


def test_all_but_the_last_frames_are_kept_by_every_step_and_layer():
    state = remembered(tiny_flow())
    assert state.memory is not None
    keep = state.memory.frames
    assert keep == 44 and keep <= FRAMES - AGAIN_FRAMES
    assert len(state.memory.steps) == FLOW.steps
    shapes = [key.shape for key, _ in state.memory.steps[0].layers]
    assert {tuple(shape) for shape in shapes} == {(2, 2, keep, 8), (2, 2, keep // 2, 8)}
    layers = len(shapes) * len(state.memory.steps)
    assert layers == FLOW.steps * 5 * FLOW.estimator.transformers
    kept = [one for step in state.memory.steps for pair in step.layers for one in pair]
    assert state.memory.size_bytes == sum(one.numel() * 4 for one in kept)


def test_speech_attends_to_the_frames_that_are_kept():
    flow = tiny_flow()
    whole, state = flow.voice_state(voice()), remembered(flow)
    noise = torch.randn(1, 80, FRAMES + 31, generator=torch.Generator().manual_seed(2))
    full, short = (flow.mel(TOKENS, one, noise=noise) for one in (whole, state))
    assert full.shape == short.shape == (1, 80, 31)
    memory = state.memory
    assert memory is not None
    for kept in memory.steps:
        kept.layers[:] = [(key * 0 + 3, value * 0 + 3) for key, value in kept.layers]
    assert not torch.allclose(flow.mel(TOKENS, state, noise=noise), short, atol=1e-3)


def test_what_is_read_is_what_was_kept():
    kept, drawn = Kept(), torch.randn(2, 2, 1, 2, 10, 4)
    filling = Passing(kept, frames=10, keep=6)
    for key, value in drawn:
        assert filling.meet(key, value)[0] is key
    reading = Passing(kept)
    for key, value in drawn:
        keys, values = reading.meet(key[:, :, 6:], value[:, :, 6:])
        assert torch.equal(keys, key) and torch.equal(values, value)


def test_a_voice_of_few_frames_is_solved_each_time():
    flow = tiny_flow()
    assert remembered(flow, AGAIN_FRAMES + 1).memory is None
    none = flow.remembered(flow.voice_state(None), torch.zeros(80, 0))
    assert none.memory is None


def test_streams_of_one_memory_share_nothing(tmp_path):
    speaker = Token2Wav.load(write_directory(tmp_path))
    state = speaker.remember(voice(), seed=3)
    tokens = [number % CODES for number in range(40)]
    first, second = (speaker.stream(tokens, state, seed=1) for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    assert len(pairs) > 1 and all(torch.equal(one, other) for one, other in pairs)
    assert sum(len(one) for one, _ in pairs) == len(speaker(tokens, seed=1))
    assert torch.equal(speaker(tokens, state, seed=1), speaker(tokens, state, seed=1))


def test_other_steps_need_another_memory():
    flow = tiny_flow()
    state = remembered(flow)
    flow.settings = replace(flow.settings, steps=3)
    with pytest.raises(InputError, match="remembered for 2 steps, not 3"):
        flow.mel(TOKENS, state)
