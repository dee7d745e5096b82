"""Units of work in other processes, of this machine or of a Ray cluster: each loads once.

Who asks for the units keeps the results: a job may be begun with Ray and finished without. All
machines of a cluster see lists, sounds and output under the same paths.
"""

import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from logging import ERROR
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from osum_echat import device as devices
from osum_echat import logs
from osum_echat.errors import InputError, OsumError

Item = TypeVar("Item")
Result = TypeVar("Result")
Start = Callable[[], Callable[[Item], Result]]
Unit = tuple[int, Any]  # an item and its number

AHEAD = 2               # units handed out for each process of this machine, so that none waits
MOST_LOST = 3           # workers that are lost over one unit
ANSWER_S = 5.0          # that the head of a cluster is waited for
SETTINGS = {            # of a local cluster, unless the environment has others
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "300",
}  # fmt: skip

LOG = logs.logger(__name__)


class LostError(InputError):
    """A process was ended from outside."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers of this machine or of a cluster.

    device: cuda, npu, cpu, auto (cards where there are any), or None: no model is loaded; workers:
    None: one for each card, on CPUs one for each machine, without a model one for each CPU of a
    cluster.
    """

    address: str | None  # of a cluster: HOST:PORT, auto or local; None: this machine
    workers: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers {self.workers}: give 1 or more")
        if self.address and self.device not in (None, "auto", "cpu", *devices.RAY_CARDS):
            raise InputError(f"--device {self.device}: with --ray give auto, cpu, cuda or npu")


def as_done(
    pool: Pool | None, start: Start[Item, Result], items: Iterable[Item]
) -> Iterator[tuple[int, Result]]:
    """The result of each item with its number from 0, in the order in which they are done.

    pool: None: this process, as is one worker of this machine; start: loads what a worker needs,
    and gives what makes a result of an item. Raises InputError for no cluster or lost workers, and
    what a worker raises.
    """
    if pool is None or pool.address is None:
        yield from _done_here(pool or Pool(None, 1), start, items)
        return
    ray = _cluster(pool.address)
    run = _Run(ray, pool, start, items)
    try:
        yield from run.results()
    finally:
        for worker in (*run.idle, *(worker for worker, _ in run.doing.values())):
            ray.kill(worker)


def _done_here(
    pool: Pool, start: Start[Item, Result], items: Iterable[Item]
) -> Iterator[tuple[int, Result]]:
    cards = devices.count(pool.device) if pool.device else 1
    count = pool.workers or cards
    if count == 1:
        yield from enumerate(map(start(), items))
        return
    threads = max(1, (os.cpu_count() or 1) // count) if pool.device else 1
    context = get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(count):
        numbers.put(number % cards)
    waiting: dict[Future[Result], int] = {}
    with ProcessPoolExecutor(count, context, _begin, (start, numbers, threads)) as executor:
        try:
            for number, item in enumerate(items):
                waiting[executor.submit(_do, item)] = number
                while len(waiting) >= AHEAD * count:
                    yield from _taken(waiting)
            while waiting:
                yield from _taken(waiting)
        except BrokenProcessPool as error:
            raise LostError("a worker process was ended from outside (out of memory?); start "
                            "again, with fewer workers: what is done is kept") from error
        finally:
            executor.shutdown(cancel_futures=True)


def _taken(waiting: dict[Future[Result], int]) -> Iterator[tuple[int, Result]]:
    """The results that are there, at least one."""
    for one in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(one), one.result()


_started: list[Callable[..., Any]] = []     # in a worker process: what loads, then what works


def _begin(start: Start[Any, Any], numbers: Any, threads: int) -> None:
    """A process of this machine: it ends with the one that started it, and at Ctrl-C at once."""
    import torch

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    os.environ["LOCAL_RANK"] = str(numbers.get())
    logs.setup(quiet=True)
    torch.set_num_threads(threads)
    _started.append(start)


def _do(item: Any) -> Any:
    if len(_started) == 1:              # here its errors are told as those of units are
        _started.append(_started[0]())
    return _started[1](item)


def _cluster(address: str) -> Any:
    """Ray, connected until this process ends: the jobs of one command share a cluster."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray: ray is missing; pip install -r requirements-ray.txt") from error
    if ray.is_initialized():
        return ray
    try:
        if address not in ("local", "auto"):        # Ray itself waits for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_S).close()
        ray.init(address, logging_level=ERROR,
                 include_dashboard=False if address == "local" else None)
    except Exception as error:                      # Ray raises bare ones
        told = f"--ray {address}: {_line(error)}; give a head's HOST:PORT, auto or local"
        raise InputError(told) from error
    return ray


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _share(ray: Any, pool: Pool) -> tuple[dict[str, Any], int]:
    """What each worker asks of Ray, and how many workers there are."""
    there = ray.cluster_resources()
    own = os.environ.get("OMP_NUM_THREADS", "")         # what --threads sets
    threads = int(own) if own.isdigit() and pool.device else 0
    card = devices.RAY_CARDS.get(pool.device or "")
    if pool.device == "auto":
        card = next((one for one in devices.RAY_CARDS.values() if one in there), None)
    if card is not None:
        if card not in there:
            raise InputError(f"--device {pool.device}: no machine of the Ray cluster has a {card}")
        one = {"num_gpus": 1} if card == "GPU" else {"resources": {card: 1}}
        return one | {"num_cpus": threads or 1}, pool.workers or int(there[card])
    found = (one["Resources"].get("CPU", 0) for one in ray.nodes() if one["Alive"])
    cpus = [int(one) for one in found if one >= 1] or [1]
    count = pool.workers or (len(cpus) if pool.device else sum(cpus))
    return {"num_cpus": threads or max(1, min(*cpus, sum(cpus) // count))}, count


class _Worker:
    """What runs in a process of the cluster."""

    def load(self, start: Start[Any, Any], folder: Path, threads: int) -> None:
        import torch

        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(f"--ray: {os.uname().nodename} has no {folder}; share it") from error
        logs.setup(quiet=True)
        torch.set_num_threads(threads)
        self._work = start()

    def do(self, item: Any) -> Any:
        return self._work(item)


class _Run:
    """The units of one call: those that are ready for a worker, and those that workers do."""

    def __init__(self, ray: Any, pool: Pool, start: Start[Any, Any], items: Iterable[Any]) -> None:
        self._ray, self._start = ray, ray.put(start)
        self._needs, self._count = _share(ray, pool)
        self._units, self._ready = enumerate(items), deque[Unit]()
        self.idle: list[Any] = []
        self.doing: dict[Any, tuple[Any, Unit | None]] = {}     # worker and unit; None: it loads
        self._lost = Counter[str]()                             # workers, by what they did

    def results(self) -> Iterator[tuple[int, Any]]:
        self._give()
        for _ in range(min(self._count, len(self._ready))):
            self._begin()
        while self._ready or any(unit for _, unit in self.doing.values()):
            (task,), _ = self._ray.wait([*self.doing])
            worker, unit = self.doing.pop(task)
            try:
                result = self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, OsumError) else error) from error
            except self._ray.exceptions.RayError as error:
                self._lose(worker, unit, error)
                continue
            self.idle.append(worker)
            self._give()
            if unit is None:
                self._lost.pop("loading", None)
            else:
                yield unit[0], result

    def _begin(self) -> None:
        """A new worker; it gets units when it has found a place and has loaded."""
        worker = self._ray.remote(**self._needs)(_Worker).remote()
        loads = worker.load.remote(self._start, Path.cwd(), self._needs["num_cpus"])
        self.doing[loads] = worker, None

    def _give(self) -> None:
        """Units to idle workers; then one for each is held ready, so that none waits for it."""
        while self.idle and self._ready:
            worker, unit = self.idle.pop(), self._ready.popleft()
            self.doing[worker.do.remote(unit[1])] = worker, unit
        while len(self._ready) < self._count and (more := next(self._units, None)) is not None:
            self._ready.append(more)

    def _lose(self, worker: Any, unit: Unit | None, error: Exception) -> None:
        """Take back what a lost worker had, and begin another one in its place."""
        self._ray.kill(worker)
        what = f"unit {unit[0] + 1}" if unit else "loading"
        self._lost[what] += 1
        if self._lost[what] >= MOST_LOST:
            raise InputError(f"--ray: {MOST_LOST} workers were lost over {what} (out of memory?): "
                             f"{_line(error)}; start again: what is done is kept") from error
        LOG.warning("a worker was lost; what it was doing is done again: %s", _line(error))
        self._ready.extendleft([unit] if unit else [])
        self._begin()
        self._give()
