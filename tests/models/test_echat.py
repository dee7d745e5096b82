"""Claims about the whole network: rows that stay apart, clips in place, the loss token by token."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat.errors import ConfigError, DataError
from osum_echat.generation.kv_cache import CachedLLM
from osum_echat.models import attention, checkpoint, ctc, int8
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import LEAST_SHARED, EChatModel, common_start
from osum_echat.models.lora import Change, LoraSettings
from osum_echat.models.loss import TokenLosses, cross_entropy
from osum_echat.sequence import IGNORED, collate, pack
from tests.tiny_network import LLM, SETTINGS, VOCAB, network, row

ROWS = [row("s2s", 40), row("t2t"), row("understand", 23, "fine"), row("tts"), row("s2t", 57)]


@torch.no_grad()
def alone(model: EChatModel, sequence) -> torch.Tensor:
    return model(collate([[sequence]], VOCAB))[0]


@pytest.mark.parametrize("rows", [pack(ROWS, 700), [[one] for one in ROWS]], ids=len)
def test_rows_of_a_batch_stay_apart(rows):
    model = network()
    with torch.no_grad():
        hidden = model(collate(rows, VOCAB))
    for number, packed in enumerate(rows):
        start = 0
        for sequence in packed:
            ours = hidden[number, start : start + len(sequence)]
            odd = any(len(clip) % 2 for clip in sequence.clips)  # the stride shares a frame
            assert torch.allclose(ours, alone(model, sequence), atol=0.1 if odd else 1e-5)
            start += len(sequence)


def test_in_training_alone_some_speech_codes_are_read_as_others():
    model, batch = network(), collate([[row("tts", speech=range(30))]], VOCAB)
    model.speech_noise = 0.5
    assert torch.equal(model.embed(batch), model.embed_ids(batch.ids))
    torch.manual_seed(0)
    moved = (model.train().embed(batch) != model.embed_ids(batch.ids)).any(-1)[0]
    first = model.text_rows
    is_code = (batch.ids[0] >= first) & (batch.ids[0] < first + model.settings.speech_codes)
    assert 5 < int(moved.sum()) < 25 and not (moved & ~is_code).any()


def test_the_loss_is_the_sum_of_its_tasks_alone_and_zero_without_trained_tokens():
    model = network()
    whole = model.loss(collate(pack([ROWS[0], ROWS[1], ROWS[3]], 700), VOCAB))
    parts = [model.loss(collate([[sequence]], VOCAB)) for sequence in (ROWS[0], ROWS[1], ROWS[3])]
    assert whole.tokens == sum(part.tokens for part in parts)
    assert torch.allclose(whole.total, sum(part.total for part in parts), rtol=1e-5)
    assert set(whole.by_task) == {"s2s", "t2t", "tts"}
    for part in parts:
        ((name, score),) = part.by_task.items()
        assert whole.by_task[name].tokens == score.tokens
        assert whole.by_task[name].loss_sum == pytest.approx(score.loss_sum, rel=1e-4)
        assert whole.by_task[name].correct == score.correct
    report = network().loss(collate([[row("t2t", answered=False)]], VOCAB))
    assert report.tokens == 0 and report.by_task == {} and report.total.item() == 0
    report.total.backward()


@pytest.mark.parametrize("name", ["t2t", "s2s"])
def test_the_loss_is_the_cross_entropy_of_shifted_targets(name):
    model, batch = network(), collate([[row(name)]], VOCAB)
    with torch.no_grad():
        hidden = model(batch)
        logits = model.logits_text(hidden)
        if name == "s2s":
            logits = torch.cat((logits, model.logits_speech(hidden)), -1)
        expected = functional.cross_entropy(
            logits[0, :-1], batch.targets[0, 1:], ignore_index=IGNORED, reduction="sum"
        )
        assert torch.allclose(model.loss(batch).total, expected, rtol=1e-5)


def made_of_four_bits(rows: int, width: int) -> nn.Linear:
    """A layer whose weight has 16 values in each 32 of a row."""
    steps, least = torch.rand(rows, width // 32, 1) * 0.01 + 1e-3, -torch.rand(rows, 1, 1) * 0.1
    levels = torch.randint(0, 16, (rows, width // 32, 32))
    levels[..., :2] = torch.tensor([0, 15])
    layer = nn.Linear(width, rows)
    layer.weight.data = (least + steps * levels).view(rows, width).half().float()
    return layer


def test_a_weight_that_was_made_of_four_bits_keeps_them_and_its_lora_layers():
    torch.manual_seed(1)
    layers = [made_of_four_bits(rows, 128) for rows in (128, 64)]
    assert int8.four_bits(torch.randn(64, 128)) is None
    states = torch.randn(3, 2, 128)
    change = Change(layers[0].weight.data, torch.randn(4, 128), torch.randn(128, 4), 0.5)
    wanted = [layer(states) for layer in layers]
    wanted[0] = wanted[0] + 0.5 * states @ change.down.T @ change.up.T
    small = int8.shrunk(layers, [change, None])
    assert all(one.numbers.dtype == torch.uint8 for one in small)
    for one, made in zip(wanted, [layer(states) for layer in small], strict=True):
        assert made.dtype == torch.float32 and (made - one).norm() < 0.006 * one.norm()
    joint = small[0].joint[0](states)
    assert torch.allclose(joint, torch.cat([layer(states) for layer in small], -1), atol=1e-5)


def test_the_logits_of_a_shrunk_model_stay_near_those_in_float32():
    torch.manual_seed(1)
    model, steps = network(), torch.randn(12, network().speech_head.in_features)

    @torch.inference_mode()
    def logits() -> list[torch.Tensor]:
        growing = CachedLLM(model.llm, [steps[:8]])
        found = [model.logits_text(growing.state)]
        for step in steps[8:]:
            growing.step(step[None])
            found.append(model.logits_text(growing.state))
        return found

    wanted = logits()
    int8.shrink(model)
    made = logits()
    assert model.text_head is not None
    for one, other in zip(wanted, made, strict=True):
        assert (other - one).norm() < 0.05 * one.norm()


def test_a_common_start_ends_before_clips_and_answers_and_changes_no_state_or_gradient():
    rows, same = [row("s2s", 40), row("s2s", 23)], row("t2t")
    assert common_start(collate([[one] for one in rows], VOCAB)) == rows[0].spans[0].start
    assert common_start(collate([[same], [same]], VOCAB)) == same.trained.index(True)
    model, rows = network(), [row("s2s", 40), row("s2s", 23, "fine"), row("s2s", 57, "yes")]
    batch = collate([[one] for one in rows], VOCAB)
    assert common_start(batch) >= LEAST_SHARED
    found = []
    for shares in (False, True):
        model.shares_start = shares
        model.zero_grad()
        report = model.loss(batch)
        report.total.backward()
        weight = model.llm.model.layers[0].self_attn.k_proj.weight
        found.append((report.total.detach(), weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_lora_in_the_top_blocks_alone_leaves_the_others_frozen():
    model = network()
    model.add_lora(LoraSettings(rank=2, alpha=4, dropout=0.0, targets=("q_proj",), top_layers=1))
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    layers = {name.split(".layers.")[1][0] for name in names}
    assert layers == {str(LLM["num_hidden_layers"] - 1)}
    with pytest.raises(ConfigError, match="top_layers"):
        LoraSettings(top_layers=0)


# Attention of packed rows, every way of it

CPU, CARD = torch.device("cpu"), torch.device("meta")
SEQUENCES = [row("t2t"), row("tts"), row("t2t", text="you and me"), row("tts"), row("t2t")]
PACKED = [SEQUENCES[:3], SEQUENCES[3:]]
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
    packed, alone = collate(PACKED, VOCAB), network().train()
    assert not packed.valid.all()
    embedded = model.embed(packed).detach().requires_grad_()
    hidden = model.run(embedded, packed.segments, packed.positions)
    weight = torch.linspace(-1, 1, hidden.shape[-1]) / 100  # gradients of about 1
    (hidden[packed.valid] * weight).sum().backward()
    for number, one in enumerate(PACKED):
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


def test_what_fits_the_device_is_chosen_and_another_name_refused():
    assert attention.chosen("auto", CPU) == "segments" and attention.chosen("auto", CARD) == "mask"
    with pytest.raises(ConfigError, match="'spda' is not one of auto, mask, eager, segments"):
        attention.chosen("spda", CPU)


# The losses: that of tokens without logits, whatever the chunks; and of CTC.

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
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_gradients_are_those_of_whole_logits(
    share: float, chunk_logits: int, frozen: bool
) -> None:
    ours, theirs = inputs(share), inputs(share)
    (states, *heads), targets, joint = ours
    for one in (*heads, *theirs[0][1:]):
        one.requires_grad_(not frozen)
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


# CTC

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
    assert report.tokens == 2 and torch.isclose(report.total, expected)


def test_ctc_adds_its_weighted_loss_to_that_of_the_tokens_and_alone_needs_clips():
    model, batch = network(), batch_of(heard_row())
    own, extra = model.loss(batch), model.loss(batch, ctc_weight=1.0, ctc_only=True)
    both = model.loss(batch, ctc_weight=0.5)
    assert torch.isclose(both.total, own.total + 0.5 * extra.total)
    assert both.tokens == own.tokens + extra.tokens
    extra.total.backward()
    assert all(part.grad is None for part in model.llm.parameters())
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
