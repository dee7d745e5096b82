"""Several processes on one training: gradients summed over all, one clock, one writer."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from osum_echat import device as devices
from osum_echat.errors import ConfigError

TIMEOUT = timedelta(hours=1)  # how long a process waits for another that scores or saves


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
                distributed.init_process_group(devices.dist_backend(device), timeout=TIMEOUT)
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
