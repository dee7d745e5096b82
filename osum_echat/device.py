"""Which processor runs the model, a thread beside it, and which process of a training this is.

The only file that knows about Ascend (npu).
"""

import os
import sys
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from osum_echat import logs
from osum_echat.errors import ConfigError, InputError

NAMES = ("auto", "cuda", "npu", "cpu")
CARDS = {  # of `auto` in this order; what to do where there are none
    "cuda": "no CUDA device is visible here; see nvidia-smi",
    "npu": "torch_npu is not installed or sees no card; see requirements-npu.txt",
}
RAY_CARDS = {"cuda": "GPU", "npu": "NPU"}  # what Ray calls a card of each kind
LEAST_SHARED_WIDTH = 512  # of an LLM whose products are worth a second thread
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # of Intel, AMD and Arm
TIMEOUT = timedelta(hours=1)  # how long a process waits for another that scores or saves

Part = TypeVar("Part")


def _cards(kind: str) -> int:
    """How many cards of a kind are visible here."""
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.device_count()
    if kind == "npu" and find_spec("torch_npu") is not None:
        import torch_npu  # type: ignore[import-not-found]

        return int(torch_npu.npu.device_count()) if torch_npu.npu.is_available() else 0
    return 0


def pick(name: str = "auto") -> torch.device:
    """The device of that name, this process's own one where there are several.

    name: auto (cuda, else npu, else cpu), or a name with or without a number such as cuda:1.
    """
    kind, _, number = name.partition(":")
    if kind not in NAMES or (number and (not number.isdigit() or kind in ("auto", "cpu"))):
        raise InputError(f"device {name!r}: choose one of {', '.join(NAMES)} "
                         "(cuda:1 or npu:1 for one card)")
    index = int(number) if number else int(os.environ.get("LOCAL_RANK", "0"))
    for card in CARDS if kind == "auto" else (kind,):
        if there := _cards(card):
            if index >= there:
                raise InputError(f"device '{card}:{index}': {there} visible here, numbered from 0; "
                                 "start as many processes as there are cards, or fewer")
            device = torch.device(card, index)
            getattr(torch, card).set_device(device)     # the current one of this process
            return device
    if kind in CARDS:
        raise InputError(f"device {kind!r}: {CARDS[kind]}, or use --device cpu")
    return torch.device("cpu")


def count(name: str = "auto") -> int:
    """Processes that a training on this machine may start: one for each card, 1 on a CPU.

    A numbered device such as cuda:1 counts as one.
    """
    kinds = CARDS if name == "auto" else (name,)
    return next((there for kind in kinds if (there := _cards(kind))), 1)


def random_state(device: torch.device) -> torch.Tensor:
    """The state of all random numbers of this process, (bytes,), the device's behind the CPU's."""
    own = torch.get_rng_state()
    if device.type == "cpu":
        return own
    return torch.cat((own, getattr(torch, device.type).get_rng_state(device).cpu()))


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Take back what `random_state` gave."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].cpu())
    if device.type != "cpu" and len(state) > size:  # else it was taken on a CPU
        getattr(torch, device.type).set_rng_state(state[size:].cpu(), device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of its card, or of the machine on a CPU."""
    if device.type != "cpu":
        return int(getattr(torch, device.type).max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kilobytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that the device's memory, or the machine's, was not enough."""
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in words or "can't allocate memory" in words)
    )


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Mixed precision on that device; dtype None or float32 switches it off."""
    if dtype is None or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given (for timing)."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def choose_threads(width: int) -> None:
    """One thread for an LLM of a width whose products are too small to share, if none were asked
    for: several threads then wait for each other for longer than they work."""
    if width < LEAST_SHARED_WIDTH and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)


def is_fast_in_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in BFLOAT16_INSTRUCTIONS)


def dist_backend(device: torch.device) -> str:
    """The name of the torch.distributed backend for that device."""
    return {"cuda": "nccl", "npu": "hccl"}.get(device.type, "gloo")


def free_memory_bytes() -> int | None:
    """Main memory that programs may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else None


def read_ahead(parts: Generator[Part, None, None], most: int) -> Generator[Part, None, None]:
    """The same parts, made in a thread of their own: up to `most` wait while a caller is busy.

    What making a part raises is raised in its place. A caller that closes this waits for the part
    that is being made and for the end of `parts`, in their own thread.
    """
    end = object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        made: deque[Future[Part | object]] = deque()
        try:
            while True:
                while len(made) <= most:
                    made.append(pool.submit(next, parts, end))
                part = made.popleft().result()
                if part is end:
                    return
                yield cast("Part", part)
        finally:
            for one in made:
                one.cancel()
            with suppress(RuntimeError):  # the interpreter ends
                pool.submit(parts.close)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of one training. `world` 1: alone, and nothing is exchanged.

    device: where what is exchanged must lie; None: the CPU.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Meet the others that torchrun started; alone where it did not start this process.

        Raises ConfigError where its environment is incomplete.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not distributed.is_initialized():
            try:
                distributed.init_process_group(dist_backend(device), timeout=TIMEOUT)
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"WORLD_SIZE is {world} but the processes cannot meet ({error}); "
                    "start them with torchrun"
                ) from error
        return cls(distributed.get_rank(), world, device)

    @property
    def is_first(self) -> bool:
        """Whether this process logs, scores and writes."""
        return self.rank == 0

    def leave(self) -> None:
        """Part from the others at the end: threads that still serve them may abort the process."""
        if self.world > 1:
            distributed.destroy_process_group()

    def all_reduce_sum(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes: the same bits in all of them."""
        if self.world == 1:
            return
        flat = torch.cat([one.flatten() for one in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([one.numel() for one in tensors])
        torch._foreach_copy_(tensors, [
            part.view_as(one) for part, one in zip(parts, tensors, strict=True)
        ])  # fmt: skip

    def all_reduce_max(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Each value's maximum over the processes, so that all decide alike."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return tuple(shared.tolist())

    def barrier(self) -> None:
        """Until every process has come here."""
        self.all_reduce_max((0.0,))

    def gather(self, state: Tensor) -> list[Tensor]:
        """The state of every process, in the order of their ranks; all of one shape."""
        if self.world == 1:
            return [state]
        own = state.to(self.device)
        every = [torch.empty_like(own) for _ in range(self.world)]
        distributed.all_gather(every, own)
        return [one.cpu() for one in every]

    def own(self, states: list[Tensor]) -> Tensor:
        """This process's part of what `gather` gave; ConfigError for another number of them."""
        if len(states) != self.world:
            raise ConfigError(
                f"this training was saved by {len(states)} processes and goes on with as many "
                f"only, not {self.world}; start as many, or begin in another output directory"
            )
        return states[self.rank]


ALONE = Ranks()


if __name__ == "__main__":  # for train.sh
    logs.out(str(count(*sys.argv[1:2])))
