"""Claims about windows: their kept steps are the clip's steps, each with its surroundings heard."""

import pytest
import torch

from osum_echat.models.long_clips import LONGEST_FRAMES, MARGIN_FRAMES, windows
from osum_echat.sequence import clip_steps
from tests.tiny_network import network


@pytest.mark.parametrize("frames", [1, 40, 3000, 3001, 3007, 5400, 5800, 12345, 60000])
def test_the_kept_steps_are_those_of_the_whole_clip(frames: int):
    kept = []
    for window in windows(frames):
        steps = range(clip_steps(window.end - window.start))[window.kept]
        kept += [window.start // 8 + step for step in steps]
        assert window.end - window.start <= LONGEST_FRAMES and window.start % 8 == 0
    assert kept == list(range(clip_steps(frames)))


def test_what_is_kept_has_a_margin_on_both_sides():
    cut = windows(10_000)
    for window in cut[1:]:
        assert window.kept.start * 8 >= MARGIN_FRAMES
    for window in cut[:-1]:
        assert (window.end - window.start) - window.kept.stop * 8 >= MARGIN_FRAMES


def test_a_clip_of_thirty_seconds_is_heard_at_once():
    assert [(window.start, window.end) for window in windows(3000)] == [(0, 3000)]


@torch.inference_mode()
def test_a_long_clip_beside_a_short_one_is_heard_as_alone():
    model = network()
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(frames, 6, generator=generator) for frames in (3333, 41, 40)]
    lengths = torch.tensor([len(clip) for clip in clips])
    mels = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    heard, counts = model.encode_audio_alone(mels, lengths)
    assert counts.tolist() == [clip_steps(len(clip)) for clip in clips]
    for clip, steps, count in zip(clips, heard, counts.tolist(), strict=True):
        alone, _ = model.encode_audio_alone(clip[None], torch.tensor([len(clip)]))
        torch.testing.assert_close(steps[:count], alone[0], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_short_clip_is_heard_as_in_training():
    model = network()
    clip = torch.randn(1, 41, 6)
    for ours, theirs in zip(model.encode_audio_alone(clip, torch.tensor([41])),
                            model.encode_audio(clip, torch.tensor([41])), strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs)
