"""Claims about encoder and adapter: lengths, neighbours, windows of long clips, and the cache."""

import pytest
import torch

from osum_echat.models.echat import LONGEST_FRAMES, MARGIN_FRAMES, windows
from osum_echat.models.encoder import Adapter, AdapterSettings, Encoder, EncoderSettings
from osum_echat.models.encoder_cache import augmented
from osum_echat.sequence import clip_steps, collate
from tests.tiny_network import VOCAB, network, row


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


def adapter() -> Adapter:
    torch.manual_seed(1)
    return Adapter(AdapterSettings(heads=2, units=12, blocks=2), 8, 10).eval()


@pytest.mark.parametrize(("steps", "fewer"), [(1, 1), (4, 1), (5, 2), (155, 39)])
def test_four_steps_become_one_rounded_up(steps, fewer):
    out, lengths = adapter()(torch.zeros(1, steps, 8), torch.tensor([steps]))
    assert out.shape == (1, fewer, 10) and lengths.tolist() == [fewer]


def test_a_longer_neighbour_does_not_change_what_the_adapter_makes_of_a_clip():
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


def test_a_memory_is_taken_over_only_from_the_same_encoder(tmp_path):
    path, batch = tmp_path / "heard.safetensors", batch_of(row("s2t", 41))
    model = network()
    model.cache_encoder(1)
    with torch.no_grad():
        model.encode_audio(batch.mels, batch.mel_lengths)
    assert model.encoder_cache is not None
    model.encoder_cache.save(path)
    same, other = network(), network(seed=1)
    for one in (same, other):
        one.cache_encoder(1)
    assert same.encoder_cache is not None and same.encoder_cache.load(path)
    assert other.encoder_cache is not None and not other.encoder_cache.load(path)
    assert not same.encoder_cache.load(tmp_path / "absent.safetensors")


def test_a_folder_of_caches_made_beforehand_is_taken_over(tmp_path):
    model, batch = network(), batch_of(row("s2t", 41), row("s2t", 80))
    with torch.no_grad():
        plain, lengths = model.encode_audio(batch.mels, batch.mel_lengths)
    for clip, frames in enumerate(batch.mel_lengths.tolist()):
        model.cache_encoder(1)
        model.encoder_cache.fill([batch.mels[clip, :frames]])
        model.encoder_cache.save(tmp_path / f"{clip}.safetensors")
    model.cache_encoder(1)
    assert model.encoder_cache.load(tmp_path) and not model.encoder_cache.load(tmp_path / "no")
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
