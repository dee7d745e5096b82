"""Early warnings: what in a training's course should be looked at before hours are lost."""

from collections.abc import Iterable

from osum_echat.logs import logger

LOG = logger(__name__)
SPIKE = 10.0  # times the usual gradient norm
MEMORY = 0.98  # share of the past in the usual norm
WARM_STEPS = 20  # steps before anything is usual
QUIET_STEPS = 50  # after a warning of a spike


class Watch:
    """Looks at each step and each check; says each thing once, or seldom."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.usual = 0.0
        self._steps = self._quiet_until = 0
        self._told: set[str] = set()

    def step(self, number: int, norm: float, tasks: Iterable[str]) -> bool:
        """Count a step; True where its gradient norm was a spike."""
        self.seen.update(tasks)
        self._steps += 1
        spike = self._steps > WARM_STEPS and norm > SPIKE * self.usual
        if spike and number >= self._quiet_until:
            LOG.warning(
                "step %d: gradient norm %.3g, usually %.3g: if the loss rises now, lower "
                "schedule.rate or engine.clip", number, norm, self.usual,
            )  # fmt: skip
            self._quiet_until = number + QUIET_STEPS
        if not spike and norm > 0.0:
            keep = min(MEMORY, 1.0 - 1.0 / self._steps)
            self.usual = keep * self.usual + (1.0 - keep) * norm
        return spike

    def check(self, scored: Iterable[str]) -> list[str]:
        """Tasks that are scored but had no trained token so far: told once, and returned."""
        silent = {*scored} - self.seen - self._told if self._steps else set()
        new = sorted(silent)
        for name in new:
            LOG.warning("task %s: scored, but nothing of it was trained so far; see data.lists and "
                        "their weights", name)  # fmt: skip
        self._told.update(new)
        return new
