"""The processes of a batch job: this one alone, several of this machine, or one of torchrun's."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

import torch

from osum_echat import device as devices
from osum_echat import logs
from osum_echat.errors import InputError, OsumError
from osum_echat.evaluation.clerk import Load, answer, load_assistant, shares
from osum_echat.evaluation.job import Job, Rank
from osum_echat.evaluation.parts import Tally, find_results

Item = TypeVar("Item")

LOG = logs.logger(__name__)
LOOK_S = 0.3  # between two looks at what the processes have written
TELL_S = 60.0  # between two lines of progress where no bar is watched


def answer_all(
    job: Job, rank: Rank, length: int, processes: int | None, load: Load = load_assistant
) -> int:
    """Answer what is left of the list: this rank's share of it, or all with several processes.

    processes: None is one for each card. Returns how many processes were ended from outside.
    Raises an OsumError for what ends the whole job.
    """
    if processes is not None and processes < 1:
        raise InputError(f"--processes {processes}: give 1 or more")
    cards = devices.count(job.device) if rank.world == 1 else 1
    processes = (processes or cards) if rank.world == 1 else 1
    left = _left(job, rank, length)
    if processes > 1 and left:
        return _answer_apart(job, min(processes, left), cards, left, load)
    for _ in told(answer(job, rank, load), left):
        pass
    return 0


def _left(job: Job, rank: Rank, length: int) -> int:
    """How much of this rank's share is to do."""
    found = find_results(job.parts)
    own = [index for window in shares(length, rank, job.window) for index in window]
    done = sum(index in found and not (job.retry and found[index].failed) for index in own)
    if done:
        LOG.info("%s: %d of %d are answered already", job.out, done, len(own))
    return len(own) - done


def _answer_apart(job: Job, count: int, cards: int, left: int, load: Load) -> int:
    """Answer with so many processes of this machine; the cards go round."""
    context = get_context("spawn")
    faults: SimpleQueue[str] = context.SimpleQueue()
    tally = Tally(job.parts)
    processes = [
        context.Process(target=_work, args=(job, Rank(one, count, one % cards), load, faults))
        for one in range(count)
    ]
    try:
        for process in processes:
            process.start()
        for _ in told(_grown(processes, tally), left):
            pass
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
    if not faults.empty():
        raise InputError(faults.get())
    ended = [process.exitcode for process in processes if process.exitcode]
    for code in ended:
        how = f"signal {-code} (out of memory?)" if code < 0 else f"code {code}"
        LOG.error("a process was ended by %s; what is done is kept: start again", how)
    return len(ended)


def _grown(processes: list[SpawnProcess], tally: Tally) -> Iterator[None]:
    """Once for each result that the processes write, until the last of them has ended."""
    while any(process.is_alive() for process in processes):
        time.sleep(LOOK_S)
        yield from [None] * tally.new()
    yield from [None] * tally.new()


def _work(job: Job, rank: Rank, load: Load, faults: "SimpleQueue[str]") -> None:
    """The life of one process; it ends with the one that started it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank.enter()
    logs.setup()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // rank.world))
    try:
        for _ in answer(job, rank, load):
            pass
    except OsumError as error:
        faults.put(str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def told(items: Iterable[Item], total: int) -> Iterator[Item]:
    """Pass the items through behind a bar; where nobody watches one, a line now and then."""
    start = last = now = time.monotonic()
    count = 0
    for count, item in enumerate(logs.progress(items, "answered", total), 1):
        yield item
        now = time.monotonic()
        if now - last > TELL_S and not sys.stderr.isatty():
            last, rest = now, (now - start) / count * (total - count)
            LOG.info("%d of %d answered, about %.0f min left", count, total, rest / 60)
    if count:
        LOG.info("%d answered in %.0f s", count, now - start)
