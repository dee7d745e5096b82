"""Claims about devices: the cpu always works, what is not there is refused."""

import pytest
import torch

from osum_echat import device
from osum_echat.errors import InputError

CPU = torch.device("cpu")


def test_the_cpu_can_always_be_picked():
    assert device.pick("cpu") == CPU
    assert device.pick("auto").type in ("cpu", "cuda", "npu")
    device.synchronize(CPU)
    assert device.dist_backend(CPU) == "gloo"


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:1", "auto:0", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(InputError, match="choose one of auto, cuda, npu, cpu"):
        device.pick(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_a_card_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="no CUDA device is visible here"):
        device.pick("cuda")
    with pytest.raises(InputError, match=r"requirements-npu\.txt"):
        device.pick("npu:1")


def test_autocast_lowers_precision_only_if_asked():
    ones = torch.ones(2, 2)
    with device.autocast(CPU, torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
    for dtype in (None, torch.float32):
        with device.autocast(CPU, dtype):
            assert (ones @ ones).dtype == torch.float32
