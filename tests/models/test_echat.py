"""Claims about the whole network: rows that stay apart, clips in place, the loss token by token."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from osum_echat.errors import ConfigError, InputError
from osum_echat.generation.kv_cache import CachedLLM
from osum_echat.inference.assistant import EChat
from osum_echat.models import int8
from osum_echat.models.echat import LEAST_SHARED, EChatModel, common_start
from osum_echat.models.int8 import Int8Linear
from osum_echat.models.lora import Change, LoraSettings
from osum_echat.sequence import IGNORED, collate, pack
from tests.tiny_network import LLM, VOCAB, network, row

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


def test_a_packed_row_leaks_nothing_even_in_gradients():
    model = network()
    batch = collate([[ROWS[1], ROWS[3]]], VOCAB)
    embedded = model.embed(batch).detach().requires_grad_()
    model.run(embedded, batch.segments, batch.positions)[0, len(ROWS[1]) :].sum().backward()
    assert embedded.grad is not None
    assert embedded.grad[0, : len(ROWS[1])].abs().max() == 0
    assert embedded.grad[0, len(ROWS[1]) :].abs().max() > 0


def test_in_training_alone_some_speech_codes_are_read_as_others():
    model, batch = network(), collate([[row("tts", speech=range(30))]], VOCAB)
    model.speech_noise = 0.5
    assert torch.equal(model.embed(batch), model.embed_ids(batch.ids))
    torch.manual_seed(0)
    moved = (model.train().embed(batch) != model.embed_ids(batch.ids)).any(-1)[0]
    first = model.text_rows
    is_code = (batch.ids[0] >= first) & (batch.ids[0] < first + model.settings.speech_codes)
    assert 5 < int(moved.sum()) < 25 and not (moved & ~is_code).any()


def test_the_loss_is_the_sum_of_its_tasks_alone():
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


def test_a_batch_without_trained_tokens_has_a_loss_of_zero():
    report = network().loss(collate([[row("t2t", answered=False)]], VOCAB))
    assert report.tokens == 0 and report.by_task == {} and report.total.item() == 0
    report.total.backward()


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


def test_only_the_blocks_of_the_llm_shrink():
    model = network().bfloat16()
    before = model.llm.lm_head.weight
    layers = [one for one in model.llm.model.layers.modules() if isinstance(one, nn.Linear)]
    odd = sum(one.in_features % 16 > 0 for one in layers)
    int8.shrink(model)
    kinds = [type(one) for one in model.llm.model.layers.modules()]
    assert kinds.count(Int8Linear) == len(layers) - odd > 0 and kinds.count(nn.Linear) == odd
    assert model.llm.lm_head.weight is before and model.dtype == torch.bfloat16
    assert model.text_head is None


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


def test_an_assistant_answers_with_int8_weights(model_directory, question_wav):
    small = EChat.load(model_directory, device="cpu", dtype="int8")
    reply = small.reply(question_wav, task="s2s", seed=3)
    assert reply.speech_tokens and reply.wave is not None
    with pytest.raises(InputError, match="dtype int8: only on a CPU, and with LoRA merged"):
        EChat.load(model_directory, device="cpu", dtype="int8", keep_lora=True)


def test_a_common_start_computed_once_gives_the_same_states_and_gradients():
    model, rows = network(), [row("s2s", 40), row("s2s", 23, "fine"), row("s2s", 57, "yes")]
    batch = collate([[one] for one in rows], VOCAB)
    assert common_start(batch) >= LEAST_SHARED
    found = []
    for shares in (False, True):
        model.share_start(shares)
        model.zero_grad()
        report = model.loss(batch)
        report.total.backward()
        weight = model.llm.model.layers[0].self_attn.k_proj.weight
        found.append((report.total.detach(), weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_common_start_ends_before_clips_and_answers():
    rows = [row("s2s", 40), row("s2s", 23)]
    batch = collate([[one] for one in rows], VOCAB)
    assert common_start(batch) == rows[0].spans[0].start
    same = collate([[row("t2t")], [row("t2t")]], VOCAB)
    assert common_start(same) == row("t2t").trained.index(True)


def test_lora_in_the_top_blocks_alone_leaves_the_others_frozen():
    model = network()
    model.add_lora(LoraSettings(rank=2, alpha=4, dropout=0.0, targets=("q_proj",), top_layers=1))
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    layers = {name.split(".layers.")[1][0] for name in names}
    assert layers == {str(LLM["num_hidden_layers"] - 1)}
    with pytest.raises(ConfigError, match="top_layers"):
        LoraSettings(top_layers=0)
