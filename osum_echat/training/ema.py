"""A running mean of the trained weights, which often answers better than the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from osum_echat.training.stages import trained_parameters


class WeightAverage:
    """Exponential mean of what trains in `model`; early on it forgets faster, as 1 in 10 steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._weights = dict(trained_parameters(model))
        self._means = {name: part.detach().clone() for name, part in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights: list[Tensor] = [part.detach() for part in self._weights.values()]
        torch._foreach_lerp_(list(self._means.values()), weights, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model holds the means; after it, its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, part in self._weights.items():
            kept = part.detach().clone()
            part.copy_(self._means[name])
            self._means[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For an exact resume."""
        return {"steps": self.steps, "means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.steps = state["steps"]
        for name, mean in self._means.items():
            mean.copy_(state["means"][name])
