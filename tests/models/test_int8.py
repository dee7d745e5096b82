"""Claims about int8 weights: near to what they were, half of bfloat16, and only in the blocks."""

import pytest
import torch
from torch import nn

from osum_echat.errors import InputError
from osum_echat.inference.assistant import EChat
from osum_echat.models import int8
from osum_echat.models.int8 import Int8Linear
from tests.tiny_network import network


@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 7, 64), (90, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_as_near_as_int8_and_bfloat16_can_be(shape, bias):
    torch.manual_seed(1)
    layer = nn.Linear(64, 48, bias=bias)
    states = torch.randn(shape)
    wanted, made = layer(states), Int8Linear(layer)(states.bfloat16())
    assert made.dtype == torch.bfloat16 and made.shape == wanted.shape
    assert (made.float() - wanted).norm() < 0.015 * wanted.norm()


def test_each_weight_is_within_half_a_step_and_a_row_of_zeros_stays():
    layer = nn.Linear(64, 48)
    with torch.no_grad():
        layer.weight[3] = 0.0
    small = Int8Linear(layer)
    steps = small.scale.float()[:, None]
    assert ((small.weight * steps - layer.weight).abs() <= 0.501 * steps).all()
    assert not small.weight[3].any() and small.scale.isfinite().all()


def test_only_the_blocks_of_the_llm_shrink():
    model = network().bfloat16()
    before = model.llm.lm_head.weight
    count = sum(isinstance(one, nn.Linear) for one in model.llm.model.layers.modules())
    int8.shrink(model)
    assert sum(isinstance(one, Int8Linear) for one in model.modules()) == count > 0
    assert not any(isinstance(one, nn.Linear) for one in model.llm.model.layers.modules())
    assert model.llm.lm_head.weight is before and model.dtype == torch.bfloat16


def test_an_assistant_answers_with_int8_weights(model_directory, question_wav):
    small = EChat.load(model_directory, device="cpu", dtype="int8")
    reply = small.reply(question_wav, task="s2s", seed=3)
    assert reply.speech_tokens and reply.wave is not None
    with pytest.raises(InputError, match="dtype int8: only on a CPU, and with LoRA merged"):
        EChat.load(model_directory, device="cpu", dtype="int8", keep_lora=True)
