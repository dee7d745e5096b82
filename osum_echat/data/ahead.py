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
from contextlib import suppress
from itertools import cycle, islice
from typing import Any

import torch

from osum_echat.data.passing import receive, send, send_error
from osum_echat.data.windows import Made, Place, Window, Windows
from osum_echat.errors import DataError

_TAKEN = b"."  # told to a worker for each batch of its that was taken
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

    ahead: how many batches each keeps ready before it begins another window; of that one it makes
    all, or else the others would wait while one window is read. A process that dies is noticed at
    once: DataError.
    """

    def __init__(self, windows: Windows, place: Place, count: int, ahead: int) -> None:
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._ends: list[Any] = []
        self._processes: list[Any] = []
        for number in range(count):
            end, far_end = context.Pipe()
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
        end, process = self._ends[number], self._processes[number]
        try:
            item = receive(end)
            if not isinstance(item, Exception):
                end.send_bytes(_TAKEN)
                return item
        except (EOFError, OSError) as error:
            process.join()
            raise DataError(
                f"data worker {number} ended with code {process.exitcode}; it may have run out of "
                "memory: lower data.workers or data.window"
            ) from error
        raise item


def _work(
    windows: Windows, place: Place, number: int, count: int, ahead: int, far_end: Any
) -> None:
    """Make every window whose turn it is, until nobody reads any more."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a training's handler is forked with the rest,
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # and would keep this process from its end
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):  # the one who reads has gone
        _hand_over(islice(windows.after(place), number, None, count), windows, ahead, far_end)


def _hand_over(own: Iterator[Window], windows: Windows, ahead: int, far_end: Any) -> None:
    """The batches of some windows, or the error that ends them."""
    ready = 0  # batches given that nobody took yet
    try:
        for window in own:
            while ready > ahead:
                far_end.recv_bytes()
                ready -= 1
            for made in windows.make(window):
                send(far_end, made)
                ready += 1
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        send_error(far_end, error)
    while ready:  # what is not read when this end closes would be lost
        far_end.recv_bytes()
        ready -= 1


def _leave_with_parent() -> None:
    """A parent that was killed must not leave workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
