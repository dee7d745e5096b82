"""True pitch of a voice: YIN differences, then the best path through them (Viterbi)."""

import numpy as np
from numpy.typing import NDArray

LOWEST_HZ = 55.0
HIGHEST_HZ = 500.0
CANDIDATE_CENTS = 30
WINDOW_S = 0.03                    # the stretch that is compared with itself one period later
LEAP_CANDIDATES = 7                # furthest move of the path between frames: 210 cents
LEAP_COST = 0.015                  # per candidate moved
LONG_PERIOD_COST = 0.02            # per octave down: two periods always fit where one does
STRICT_UNVOICED_COST = 0.45        # a difference above this is rather called unvoiced
UNVOICED_COST = 0.60               # the same once the voice's range is known
RANGE_COST = 0.2                   # per squared octave from the voice's median
SWITCH_COST = 0.12                 # of a change between voiced and unvoiced
SILENT_RMS = 1e-3

Array = NDArray[np.float32]


def track(samples: Array, rate_hz: int, hop_samples: int) -> Array:
    """Pitch in Hz of each hop of `samples` (samples,), 0 where unvoiced: (samples // hop,).

    A value describes the middle of its hop, as the frames of `prompt_mel` do.
    Source: de Cheveigne and Kawahara, "YIN" (2002), steps 2, 3 and 5; the path is ours.
    """
    frames = len(samples) // hop_samples
    if not frames:
        return np.zeros(0, np.float32)
    shortest, longest = int(rate_hz / HIGHEST_HZ), int(np.ceil(rate_hz / LOWEST_HZ)) + 1
    window = int(WINDOW_S * rate_hz)
    stretches = _stretches(samples, frames, hop_samples, window + longest)
    differences = _differences(stretches, window, longest)
    candidates = int(1200 * np.log2(HIGHEST_HZ / LOWEST_HZ) / CANDIDATE_CENTS)
    hertz = LOWEST_HZ * 2 ** (np.arange(candidates) * CANDIDATE_CENTS / 1200)
    periods = rate_hz / hertz
    low = np.floor(periods).astype(int)
    share = (periods - low).astype(np.float32)
    costs = differences[:, low] * (1 - share) + differences[:, low + 1] * share
    costs += LONG_PERIOD_COST * np.log2(periods / shortest).astype(np.float32)
    silent = np.sqrt(np.mean(stretches**2, axis=1)) < SILENT_RMS
    costs[silent] += 1.0
    path = _best_path(costs, STRICT_UNVOICED_COST)
    if (path >= 0).any():
        octaves = np.log2(hertz / np.median(hertz[path[path >= 0]]))
        path = _best_path(costs + (RANGE_COST * octaves**2).astype(np.float32), UNVOICED_COST)
    voiced = path >= 0
    found = np.zeros(frames, np.float32)
    lags = _refined(differences, low[path] + (share[path] > 0.5))
    found[voiced] = (rate_hz / lags)[voiced]
    return found


def _stretches(samples: Array, frames: int, hop_samples: int, length: int) -> Array:
    """(frames, length): the samples around the middle of each hop, zeros beyond the ends."""
    before = length // 2 - hop_samples // 2
    padded = np.pad(np.asarray(samples, np.float32), (before, length))
    starts = np.arange(frames) * hop_samples
    return np.lib.stride_tricks.sliding_window_view(padded, length)[starts]


def _differences(stretches: Array, window: int, longest: int) -> Array:
    """Normalised YIN difference: (frames, lags 0..longest), about 0 at the period, 1 at noise."""
    size = 1 << (stretches.shape[1] + window - 1).bit_length()
    spectrum = np.fft.rfft(stretches, size)
    head = np.fft.rfft(stretches[:, :window], size)
    product = np.fft.irfft(spectrum * head.conj(), size)[:, : longest + 1]
    energy = np.cumsum(np.pad(stretches.astype(np.float64) ** 2, ((0, 0), (1, 0))), axis=1)
    power = energy[:, window : window + longest + 1] - energy[:, : longest + 1]
    raw = np.maximum(power[:, :1] + power - 2 * product, 0)
    lags = np.arange(longest + 1)
    mean = np.cumsum(raw[:, 1:], axis=1) / lags[1:]
    normal = np.ones_like(raw)
    normal[:, 1:] = raw[:, 1:] / np.maximum(mean, 1e-12)
    return normal.astype(np.float32)


def _best_path(costs: Array, unvoiced_cost: float) -> NDArray[np.int64]:
    """The cheapest candidate of each frame, -1 for unvoiced. costs: (frames, candidates)."""
    frames, candidates = costs.shape
    reach = np.arange(-LEAP_CANDIDATES, LEAP_CANDIDATES + 1)
    leap = (LEAP_COST * np.abs(reach)).astype(np.float32)
    origin = np.zeros((frames, candidates), np.int64)      # -1: came from unvoiced
    quiet_origin = np.zeros(frames, np.int64)
    voiced, quiet = costs[0].copy(), np.float32(unvoiced_cost)
    for frame in range(1, frames):
        padded = np.pad(voiced, LEAP_CANDIDATES, constant_values=np.inf)
        moves = np.lib.stride_tricks.sliding_window_view(padded, len(reach)) + leap
        step = moves.argmin(axis=1)
        best = moves[np.arange(candidates), step]
        origin[frame] = np.arange(candidates) + reach[step]
        rising = quiet + SWITCH_COST < best
        origin[frame][rising] = -1
        falling = int(voiced.argmin())
        fall = voiced[falling] + SWITCH_COST
        quiet_origin[frame] = falling if fall < quiet else -1
        voiced = np.where(rising, quiet + SWITCH_COST, best) + costs[frame]
        quiet = min(quiet, fall) + np.float32(unvoiced_cost)
    path = np.full(frames, -1, np.int64)
    path[-1] = int(voiced.argmin()) if voiced.min() < quiet else -1
    for frame in range(frames - 1, 0, -1):
        here = path[frame]
        path[frame - 1] = quiet_origin[frame] if here < 0 else origin[frame][here]
    return path


def _refined(differences: Array, lags: NDArray[np.int64]) -> Array:
    """Each frame's lag moved to the bottom of the dip beside it, by a parabola: (frames,)."""
    rows = np.arange(len(lags))
    last = differences.shape[1] - 2
    near = np.clip(lags[:, None] + np.arange(-2, 3), 1, last)
    middle = near[rows, differences[rows[:, None], near].argmin(axis=1)]
    left, dip, right = (differences[rows, middle + side] for side in (-1, 0, 1))
    bend = left - 2 * dip + right
    shift = np.where(bend > 1e-9, 0.5 * (left - right) / np.maximum(bend, 1e-9), 0)
    return (middle + np.clip(shift, -1, 1)).astype(np.float32)
