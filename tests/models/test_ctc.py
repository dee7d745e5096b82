"""Claims about the CTC loss."""

from dataclasses import replace

import pytest
import torch

from osum_echat.errors import ConfigError, DataError
from osum_echat.models import checkpoint, ctc
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import EChatModel
from osum_echat.sequence import collate
from tests.tiny_network import SETTINGS, VOCAB, network, row


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
    scores = ctc.SHARPNESS * steps[0] @ (table / norms[:, None]).T / norms.mean()
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
    assert report.by_task[ctc.CTC].correct == report.tokens == 2
    assert all(part.grad is None for part in model.llm.parameters())


def test_ctc_adds_its_weighted_loss_to_that_of_the_tokens():
    model, batch = network(), batch_of(heard_row())
    own, extra = model.loss(batch), model.loss(batch, ctc_weight=1.0, ctc_only=True)
    both = model.loss(batch, ctc_weight=0.5)
    assert torch.isclose(both.total, own.total + 0.5 * extra.total)
    assert both.tokens == own.tokens + extra.tokens


def test_ctc_alone_refuses_a_batch_without_clips():
    with pytest.raises(DataError, match="take text tasks out"):
        network().loss(batch_of(row("t2t")), ctc_weight=1.0, ctc_only=True)


def test_words_that_the_classes_cannot_spell_are_refused():
    model = network(settings=replace(SETTINGS, ctc=CtcSettings(pieces=ord("h"))))
    with pytest.raises(ConfigError, match=r"engine\.ctc_weight: .* spells with 104 pieces"):
        model.loss(batch_of(heard_row("hi")), ctc_weight=1.0)
    assert model.loss(batch_of(heard_row("bad")), ctc_weight=1.0).tokens


def test_classes_of_the_ctc_are_the_first_pieces_and_a_row_for_each_label(tmp_path):
    settings = replace(SETTINGS, ctc=CtcSettings(pieces=5, labels=("CHILD", "OLD")))
    torch.manual_seed(0)
    model = EChatModel(settings).eval()
    steps = torch.randn(1, 3, model.llm.config.hidden_size)
    scores = model.ctc_log_probs(steps)
    table = model.llm.get_input_embeddings().weight[:5]
    rows = torch.cat((table, model.ctc_labels.weight, model.speech_embedding.weight[-2:-1]))
    assert torch.allclose(scores, ctc.log_probs(steps, rows))
    checkpoint.save(tmp_path, model)
    again = checkpoint.load(tmp_path)
    assert again.settings.ctc == settings.ctc
    assert torch.equal(again.ctc_labels.weight, model.ctc_labels.weight)
