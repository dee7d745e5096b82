"""A batch on its way from one process to another: its tensors in memory that both of them see.

Where the system offers it (Linux), that is a file without a name, so that nothing has to be copied
by who receives it, and nothing is left behind by who is killed. Elsewhere tensors travel as bytes.
"""

import mmap
import os
from dataclasses import dataclass, fields, replace
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osum_echat.data.windows import Made

_ALIGNED = 64  # bytes that every array begins at a multiple of


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array is in the shared memory."""

    kind: str
    shape: tuple[int, ...]
    start: int  # byte


def send(end: Any, made: Made) -> None:
    """Hand over a batch through a connection. Raises OSError when nobody reads any more."""
    bare, arrays = _parted(made)
    if not arrays or not hasattr(os, "memfd_create"):
        end.send((bare, arrays, 0))
        return
    places, size = _placed(arrays)
    shared = os.memfd_create("batch")
    try:
        os.ftruncate(shared, size)
        with os.fdopen(shared, "wb", closefd=False) as file:
            for name, place in places.items():
                file.seek(place.start)
                file.write(arrays[name].data)
        end.send((bare, places, size))
        reduction.send_handle(end, shared, None)
    finally:
        os.close(shared)


def send_error(end: Any, error: Exception) -> None:
    """Hand over why there are no more batches."""
    end.send((error, {}, 0))


def receive(end: Any) -> Made | Exception:
    """The next batch of a connection, or why there are no more.

    Raises EOFError or OSError when the process at the other end has gone.
    """
    bare, places, size = end.recv()
    if not places:
        return bare
    arrays = places
    if size:
        shared = reduction.recv_handle(end)
        try:
            memory = mmap.mmap(shared, size)
        finally:
            os.close(shared)
        arrays = {name: _array(memory, place) for name, place in places.items()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return replace(bare, batch=replace(bare.batch, **tensors))


def _parted(made: Made) -> tuple[Made, dict[str, np.ndarray]]:
    """A batch without its tensors, and these as arrays."""
    if made.batch is None:
        return made, {}
    values = {one.name: getattr(made.batch, one.name) for one in fields(made.batch)}
    arrays = {
        name: one.contiguous().numpy() for name, one in values.items() if isinstance(one, Tensor)
    }
    empty = dict.fromkeys(arrays)
    return replace(made, batch=replace(made.batch, **empty)), arrays  # type: ignore[arg-type]


def _placed(arrays: dict[str, np.ndarray]) -> tuple[dict[str, _Place], int]:
    """The places of arrays one behind the other, and the bytes of all."""
    places, at = {}, 0
    for name, array in arrays.items():
        places[name] = _Place(array.dtype.str, array.shape, at)
        at += -(-array.nbytes // _ALIGNED) * _ALIGNED
    return places, max(at, _ALIGNED)


def _array(memory: mmap.mmap, place: _Place) -> np.ndarray:
    kind = np.dtype(place.kind)
    count = int(np.prod(place.shape, dtype=np.int64))
    return np.frombuffer(memory, kind, count, place.start).reshape(place.shape)
