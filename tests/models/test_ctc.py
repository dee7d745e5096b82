"""Claims about the CTC loss, and about a frozen encoder's cache."""

from dataclasses import replace

import pytest
import torch

from osum_echat.errors import DataError
from osum_echat.models import echat
from osum_echat.models.encoder_cache import varied
from osum_echat.sequence import collate
from tests.tiny_network import VOCAB, network, row


def batch_of(*rows):
    return collate([[one] for one in rows], VOCAB)


def heard_row(text: str = "hi", frames: int = 80):
    return replace(row("s2t", frames), ctc_targets=[VOCAB.encode(text)])


def test_the_ctc_loss_is_ctc_on_the_directions_of_the_text_table():
    model, batch = network(), batch_of(heard_row())
    steps, lengths = model.encode_audio(batch.mels, batch.mel_lengths)
    marks = model.speech_embedding.weight[-2:-1]
    table = torch.cat((model.llm.get_input_embeddings().weight, marks))
    norms = table.norm(dim=-1)
    scores = echat.CTC_SHARPNESS * steps[0] @ (table / norms[:, None]).T / norms.mean()
    expected = torch.nn.functional.ctc_loss(
        scores.log_softmax(-1)[:, None], torch.tensor([batch.ctc_targets[0]]), lengths,
        torch.tensor([2]), blank=model.text_rows, reduction="sum",
    )
    report = model.ctc_loss(batch, (steps, lengths))
    assert report.tokens == 2
    assert torch.isclose(report.total, expected)


def test_training_by_ctc_alone_teaches_what_is_said():
    model, batch = network().train(), batch_of(heard_row("hi"))
    optimizer = torch.optim.Adam(model.adapter.parameters(), 1e-2)
    for _ in range(200):
        report = model.loss(batch, ctc_weight=1.0, ctc_only=True)
        optimizer.zero_grad()
        report.total.backward()
        optimizer.step()
    assert report.by_task[echat.CTC].correct == report.tokens == 2
    assert all(part.grad is None for part in model.llm.parameters())


def test_ctc_adds_its_weighted_loss_to_that_of_the_tokens():
    model, batch = network(), batch_of(heard_row())
    own, ctc = model.loss(batch), model.loss(batch, ctc_weight=1.0, ctc_only=True)
    both = model.loss(batch, ctc_weight=0.5)
    assert torch.isclose(both.total, own.total + 0.5 * ctc.total)
    assert both.tokens == own.tokens + ctc.tokens


def test_ctc_alone_refuses_a_batch_without_clips():
    with pytest.raises(DataError, match="take text tasks out"):
        network().loss(batch_of(row("t2t")), ctc_weight=1.0, ctc_only=True)


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


def test_a_remembered_clip_is_varied_in_training_only():
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
    assert torch.allclose(varied(steps, 0.0), steps, atol=1e-5)
    changed = varied(steps, 0.5)
    assert changed.shape == steps.shape
    assert changed.isfinite().all()
    if count == 60:
        assert (changed.mean(1) - steps[:, 0]).abs().median() < 0.1
