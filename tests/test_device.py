"""Claims about devices: the cpu always works, what is not there is refused."""

import importlib.machinery
import sys
import threading
import types
from collections.abc import Iterator
from typing import NamedTuple
from unittest.mock import Mock

import pytest
import torch

from osum_echat import device
from osum_echat.errors import ConfigError, InputError

CPU = torch.device("cpu")


def test_the_cpu_can_always_be_picked_and_asked():
    assert device.pick("cpu") == CPU and device.count("cpu") == 1
    assert device.pick("auto").type in ("cpu", "cuda", "npu")
    device.synchronize(CPU)
    assert device.dist_backend(CPU) == "gloo" and device.peak_memory_bytes(CPU) > 2**20
    state = device.random_state(CPU)
    drawn = torch.rand(2)
    device.set_random_state(state, CPU)
    assert torch.equal(torch.rand(2), drawn)


@pytest.mark.parametrize(("width", "asked", "taken"), [(256, "", 1), (256, "2", 2), (576, "", 2)])
def test_a_small_model_takes_one_thread_unless_more_are_asked_for(monkeypatch, width, asked, taken):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        torch.set_num_threads(2)
        device.choose_threads(width)
        assert torch.get_num_threads() == taken
    finally:
        torch.set_num_threads(before)


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


class Card(NamedTuple):
    """A device of a kind that this build of torch does not know."""

    type: str
    index: int


@pytest.fixture
def cards(monkeypatch):
    """Two Ascend cards, as far as torch_npu tells: what it adds to torch, on the CPU."""
    found = Mock()
    found.device_count.return_value = 2
    found.is_available.side_effect = lambda: found.device_count() > 0
    module = types.ModuleType("torch_npu")
    module.npu = found  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setattr(torch, "npu", found, raising=False)
    monkeypatch.setattr(torch, "device", lambda kind, index=0: Card(kind, index))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return found


def test_ascend_cards_are_picked_counted_and_made_current(cards, monkeypatch):
    assert device.pick("auto") == ("npu", 0) and device.count() == 2
    assert device.pick("npu:1") == ("npu", 1) and cards.set_device.call_args.args == (("npu", 1),)
    assert device.count("npu:1") == 1
    assert device.pick("cpu") == ("cpu", 0) and device.count("cpu") == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.pick("npu") == ("npu", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="2 visible here"):
        device.pick("auto")
    cards.device_count.return_value = 0
    assert device.pick("auto").type == "cpu" and device.count() == 1


@pytest.mark.parametrize(("error", "told"),
                         [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
                          (RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB"), True),
                          (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                           True), (MemoryError(), True), (RuntimeError("shapes do not fit"), False),
                          (ValueError("out of memory"), False)])  # fmt: skip
def test_a_lack_of_memory_is_known_from_other_errors(error, told):
    assert device.is_out_of_memory(error) == told


def test_parts_read_ahead_come_in_order_few_at_a_time_and_end_with_their_caller():
    made, ended = [], []

    def parts() -> Iterator[int]:
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            ended.append(threading.current_thread())

    assert [*device.read_ahead(parts(), 4)] == [*range(100)]
    made.clear()
    ahead = device.read_ahead(parts(), 4)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert len(ended) == 2 and threading.main_thread() not in ended and len(made) <= 3 + 4
    with pytest.raises(ZeroDivisionError):          # what fails ahead fails where it is read
        list(device.read_ahead((1 // number for number in (1, 0)), 4))


def test_processes_without_torchrun_or_of_another_number_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"saved by 2 processes.*not 1"):
        device.Ranks().own([torch.zeros(3), torch.zeros(3)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun"):
        device.Ranks.join(CPU)
