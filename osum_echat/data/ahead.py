"""Batches made ahead of need: in a thread, or by worker processes that take windows in turn.

However many make them, the same batches come in the same order.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from osum_echat.data.windows import Made, Place, Windows
from osum_echat.errors import DataError

_LOOK_S = 0.2  # how often who waits looks whether the others are still there


def in_line(windows: Windows, place: Place) -> Iterator[Made]:
    """What follows a place, made when asked for."""
    for window in windows.after(place):
        yield from windows.make(window)


class InThread:
    """Items made ahead, up to `count` of them. Errors come out where the item would."""

    def __init__(self, items: Iterator[Made], count: int) -> None:
        self._ready: queue.Queue[Made | Exception] = queue.Queue(count)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> "InThread":
        return self

    def __next__(self) -> Made:
        item = self._ready.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stop making items; what is ready is lost."""
        self._closed.set()
        self._thread.join()

    def _make(self, items: Iterator[Made]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except Exception as error:
            self._put(error)

    def _put(self, item: Made | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False


class InProcesses:
    """What follows a place, made by several processes: window k by the one numbered k % count.

    ahead: how many batches each keeps ready. Batches come through pipes, so that nothing is left
    in shared memory and a process that dies is noticed at once: DataError.
    """

    def __init__(self, windows: Windows, place: Place, count: int, ahead: int) -> None:
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._ends: list[Any] = []
        self._processes: list[Any] = []
        for number in range(count):
            end, far_end = context.Pipe(duplex=False)
            process = context.Process(
                target=_work,
                args=(windows, place, number, count, ahead, far_end),
                daemon=True,
                name=f"data worker {number}",
            )
            process.start()
            far_end.close()  # or the end of the process would not be seen here
            self._ends.append(end)
            self._processes.append(process)
        self._items = self._in_turn()

    def __iter__(self) -> "InProcesses":
        return self

    def __next__(self) -> Made:
        return next(self._items)

    def close(self) -> None:
        """End the processes; what is ready is lost."""
        for process in self._processes:
            process.kill()
        for process, end in zip(self._processes, self._ends, strict=True):
            process.join()
            end.close()

    def _in_turn(self) -> Iterator[Made]:
        for number in cycle(range(len(self._processes))):
            while True:
                made = self._next_of(number)
                yield made
                if made.ends_window:
                    break

    def _next_of(self, number: int) -> Made:
        try:
            item = self._ends[number].recv()
        except (EOFError, OSError) as error:
            self._processes[number].join()
            raise DataError(
                f"data worker {number} ended with code {self._processes[number].exitcode}; it may "
                "have run out of memory: lower data.workers or data.window"
            ) from error
        if isinstance(item, Exception):
            raise item
        made, arrays = item
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return replace(made, batch=replace(made.batch, **tensors)) if made.batch else made


def _work(
    windows: Windows, place: Place, number: int, count: int, ahead: int, far_end: Any
) -> None:
    """Make every window whose turn it is, until nobody reads any more."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a training's handler is forked with the rest,
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # and would keep this process from its end
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    own = islice(windows.after(place), number, None, count)
    items = InThread((made for window in own for made in windows.make(window)), max(ahead, 1))
    try:
        for made in items:
            far_end.send(_as_arrays(made))
    except Exception as error:
        far_end.send(error)


def _leave_with_parent() -> None:
    """A parent that was killed must not leave workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_arrays(made: Made) -> tuple[Made, dict[str, Any]]:
    """Tensors as arrays: a tensor would be sent through shared memory."""
    if made.batch is None:
        return made, {}
    values = {one.name: getattr(made.batch, one.name) for one in fields(made.batch)}
    arrays = {name: one.numpy() for name, one in values.items() if isinstance(one, Tensor)}
    empty = dict.fromkeys(arrays)
    return replace(made, batch=replace(made.batch, **empty)), arrays  # type: ignore[arg-type]
