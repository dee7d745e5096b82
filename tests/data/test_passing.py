"""Claims about batches that go from process to process: they arrive as they were."""

import multiprocessing
import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from osum_echat.data import passing
from osum_echat.data.drops import Drop
from osum_echat.data.passing import receive, send, send_error
from osum_echat.data.sources import Dropped
from osum_echat.data.windows import Made, Place
from osum_echat.errors import DataError
from osum_echat.sequence import Batch, ClipSpan

LOST = [Drop("list", Dropped("too long", "u3: 9000 tokens")), None]


def batch(clips: int, tokens: int = 7) -> Batch:
    shape = (2, tokens)
    return Batch(
        keys=[["a", "b"], ["c"]], tasks=[["tts", "s2s"], ["t2t"]],
        ids=torch.arange(2 * tokens).reshape(shape), targets=torch.full(shape, -100),
        valid=torch.rand(shape) > 0.5, positions=torch.zeros(shape, dtype=torch.long),
        joint=torch.rand(shape) > 0.5, segments=torch.ones(shape, dtype=torch.long),
        mels=torch.rand(clips, 13, 80).transpose(1, 2) if clips else None,
        mel_lengths=torch.arange(clips), spans=[ClipSpan(0, 1, 2)] * clips,
    )  # fmt: skip


def passed(made: Made) -> Made:
    end, far_end = multiprocessing.Pipe()
    send(far_end, made)
    found = receive(end)
    assert isinstance(found, Made)
    return found


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("clips", [0, 1, 40])
def test_a_batch_arrives_as_it_was(
    clips: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    made = Made(batch(clips), Place(1, 2, 3), True, LOST, [None])
    found = passed(made)
    assert (found.place, found.ends_window, found.drafted, found.decoded) == (
        made.place, True, LOST, [None]
    )  # fmt: skip
    assert found.batch is not None and made.batch is not None
    for one in fields(Batch):
        sent, got = getattr(made.batch, one.name), getattr(found.batch, one.name)
        if isinstance(sent, Tensor):
            assert torch.equal(sent, got) and sent.dtype == got.dtype
            got.add_(1) if got.dtype != torch.bool else got.logical_not_()  # it can be written to
        else:
            assert sent == got


def test_a_place_without_a_batch_arrives(tmp_path: Path) -> None:
    assert passed(Made(None, Place(2), True, LOST)) == Made(None, Place(2), True, LOST)


def test_an_error_arrives_in_its_turn() -> None:
    end, far_end = multiprocessing.Pipe()
    send(far_end, Made(None, Place(2), True))
    send_error(far_end, DataError("x.tar: gone"))
    far_end.close()
    assert isinstance(receive(end), Made)
    found = receive(end)
    assert isinstance(found, DataError) and str(found) == "x.tar: gone"
    with pytest.raises(EOFError):
        receive(end)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files without a name")
def test_memory_goes_with_the_batch() -> None:
    end, far_end = multiprocessing.Pipe()
    kept = []
    for _ in range(5):
        send(far_end, Made(batch(3), Place(), False))
        kept.append(receive(end))
    assert _mapped() == 5
    kept.clear()
    assert _mapped() == 0
    opened = [one for one in list(Path("/proc/self/fd").iterdir()) if one.is_symlink()]
    assert not [one for one in opened if "memfd:" in str(one.readlink())]


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:batch")


def test_one_who_has_gone_is_an_error() -> None:
    end, far_end = multiprocessing.Pipe()
    end.close()
    with pytest.raises(OSError):
        passing.send(far_end, Made(batch(1), Place(), False))
