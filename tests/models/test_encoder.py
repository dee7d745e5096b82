"""Claims about the encoder: windows of long clips, and its cache."""

import pytest
import torch

from osum_echat.models.echat import LONGEST_FRAMES, MARGIN_FRAMES, windows
from osum_echat.models.encoder_cache import EncoderCache, augmented
from osum_echat.sequence import clip_steps, collate
from tests.tiny_network import VOCAB, network, row


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


def batch_of(*rows):
    return collate([[one] for one in rows], VOCAB)


def test_a_remembered_clip_gives_the_same_steps_as_a_heard_one():
    model, batch = network(), batch_of(row("s2t", 41), row("s2t", 80))
    with torch.no_grad():
        plain, _ = model.encode_audio(batch.mels, batch.mel_lengths)
        model.cache_encoder(1)
        first, lengths = model.encode_audio(batch.mels, batch.mel_lengths)
        model.encoder.after_norm.weight.zero_()          # heard once, never again
        again, _ = model.encode_audio(batch.mels, batch.mel_lengths)
    for clip, steps in enumerate(lengths.tolist()):
        assert torch.allclose(first[clip, :steps], plain[clip, :steps], atol=0.02)
    assert torch.equal(first, again)


def test_what_is_remembered_in_training_has_no_dropout():
    model, batch = network(), batch_of(row("s2t", 41), row("s2t", 80))
    wanted, found = (EncoderCache(encoder, 2**20)(batch.mels, batch.mel_lengths)[0]
                     for encoder in (model.encoder.eval(), model.encoder.train()))  # fmt: skip
    assert model.encoder.settings.dropout and torch.equal(found, wanted)


def test_a_folder_of_caches_made_beforehand_is_taken_over_by_the_same_encoder_only(tmp_path):
    model, batch = network(), batch_of(row("s2t", 41), row("s2t", 80))
    with torch.no_grad():
        plain, lengths = model.encode_audio(batch.mels, batch.mel_lengths)
    for clip, frames in enumerate(batch.mel_lengths.tolist()):
        model.cache_encoder(1)
        model.encoder_cache.fill([batch.mels[clip, :frames]])
        model.encoder_cache.save(tmp_path / f"{clip}.safetensors")
    other = network(seed=1)
    for one in (model, other):
        one.cache_encoder(1)
    assert not other.encoder_cache.load(tmp_path) and not model.encoder_cache.load(tmp_path / "no")
    assert model.encoder_cache.load(tmp_path)
    with torch.no_grad():
        model.encoder.after_norm.weight.zero_()          # what were encoded now would be nothing
        found, _ = model.encode_audio(batch.mels, batch.mel_lengths)
    for clip, steps in enumerate(lengths.tolist()):
        assert torch.allclose(found[clip, :steps], plain[clip, :steps], atol=0.02)


def test_a_remembered_clip_is_augmented_in_training_only():
    model, batch = network(), batch_of(row("s2t", 41), row("s2t", 80))
    model.cache_encoder(1, vary=0.7)
    assert model.encoder_cache is not None
    with torch.no_grad():
        plain, lengths = model.encoder_cache(batch.mels, batch.mel_lengths)
        one, other = (model.train().encode_audio(batch.mels, batch.mel_lengths) for _ in range(2))
        calm, _ = model.eval().encode_audio(batch.mels, batch.mel_lengths)
        expected, _ = model.adapter(plain, lengths)
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(calm, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_varying_keeps_the_shape_and_no_more_than_bends_what_is_there(count):
    torch.manual_seed(1)
    steps = torch.linspace(0, 1, count)[:, None].expand(-1, 300)
    assert torch.allclose(augmented(steps, 0.0), steps, atol=1e-5)
    changed = augmented(steps, 0.5)
    assert changed.shape == steps.shape
    assert changed.isfinite().all()
    if count == 60:
        assert (changed.mean(1) - steps[:, 0]).abs().median() < 0.1
