"""How the learning rate moves: a factor of the base rate for each optimizer step."""

import math
from dataclasses import dataclass, replace

from osum_echat.errors import ConfigError
from osum_echat.settings import check_numbers, check_word


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """`rate` is the peak. Steps are optimizer steps; the first step is number 0."""

    kind: str = "warmuplr"
    rate: float = 1e-6
    warmup_steps: int = 2000
    total_steps: int = 0  # cosine: the step where it ends; 0 = with the training's own limit
    hold_steps: int = 0  # noam_hold: after warm-up, this long at the peak
    decay: float = 0.5  # noam_hold: exponent of the falling part
    min_rate: float = 0.0  # the falling parts never go below
    budget_minutes: float = 0.0  # cosine: follow the clock instead of the steps; 0 = steps

    def __post_init__(self) -> None:
        check_word("schedule.kind", self.kind, SHAPES)
        names = "rate warmup_steps total_steps hold_steps decay min_rate budget_minutes"
        check_numbers(self, "schedule", names, 0)


def ending(settings: ScheduleSettings, steps: int, minutes: float) -> ScheduleSettings:
    """The schedule with an end: a cosine that names none falls until the training ends.

    steps, minutes: the limits of the training; 0: none. Raises ConfigError where there is no end.
    """
    if settings.kind != "cosine" or settings.total_steps or settings.budget_minutes:
        return settings
    if not (steps or minutes):
        raise ConfigError(
            "schedule.total_steps: a cosine needs an end, and run has no limit of steps or "
            "minutes; give total_steps or budget_minutes"
        )
    return replace(settings, total_steps=steps, budget_minutes=0.0 if steps else minutes)


def learning_rate(settings: ScheduleSettings, step: int, minutes: float = 0.0) -> float:
    """The rate for optimizer step `step` (from 0), `minutes` after the start of training.

    `minutes` counts training time over all resumes and matters only with `budget_minutes`.
    """
    return SHAPES[settings.kind](settings, step, minutes)


def _warm(settings: ScheduleSettings, step: int) -> float:
    return min(1.0, (step + 1) / max(1, settings.warmup_steps))


def _constant(settings: ScheduleSettings, step: int, minutes: float) -> float:
    return settings.rate * _warm(settings, step)


def _cosine(settings: ScheduleSettings, step: int, minutes: float) -> float:
    """Linear warm-up, then half a cosine from the peak down to `min_rate`."""
    if settings.budget_minutes > 0:
        done = minutes / settings.budget_minutes
    else:
        falling_steps = max(1, settings.total_steps - settings.warmup_steps)
        done = (step - settings.warmup_steps) / falling_steps
    done = min(1.0, max(0.0, done))
    wave = 0.5 * (1.0 + math.cos(math.pi * done))
    peak = settings.rate * _warm(settings, step)
    return settings.min_rate + max(0.0, peak - settings.min_rate) * wave


def _warmup_inverse_root(settings: ScheduleSettings, step: int, minutes: float) -> float:
    """Upstream's `warmuplr`: linear to the peak at the end of warm-up, then as 1 / sqrt(step)."""
    count, warm = step + 1, max(1, settings.warmup_steps)
    return settings.rate * (warm**0.5 * min(count**-0.5, count * warm**-1.5))


def _noam_hold(settings: ScheduleSettings, step: int, minutes: float) -> float:
    """Upstream's `NoamHoldAnnealing`: warm up, hold the peak, fall by a power, end at the floor."""
    warm, hold_end = settings.warmup_steps, settings.warmup_steps + settings.hold_steps
    if settings.total_steps and step > settings.total_steps:
        return settings.min_rate
    if step <= warm and warm > 0:
        return settings.rate * (step + 1) / (warm + 1)
    if step < hold_end:
        return settings.rate
    fall = max(1.0, warm**settings.decay) / max(1.0, (step - settings.hold_steps) ** settings.decay)
    return max(settings.min_rate, settings.rate * fall)


SHAPES = {
    "constant": _constant, "cosine": _cosine, "warmuplr": _warmup_inverse_root,
    "noam_hold": _noam_hold,
}  # fmt: skip
