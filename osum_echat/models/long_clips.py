"""Clips longer than encoder and adapter were trained on: heard in windows that overlap."""

from dataclasses import dataclass

FRAMES_PER_STEP = 8  # mel frames (10 ms) that become one step of the adapter
LONGEST_FRAMES = 3000  # 30 s: what Whisper's encoder was trained on, and OSUM-EChat's clips
MARGIN_FRAMES = 200  # 2 s that a window hears beyond what is kept of it


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` to `end` are heard; `kept` are the steps of the window that count."""

    start: int
    end: int
    kept: slice


def windows(
    frames: int, longest: int = LONGEST_FRAMES, margin: int = MARGIN_FRAMES
) -> list[Window]:
    """Cut a clip; its windows' kept steps, one after another, are those of the whole clip.

    longest, margin: in frames, multiples of FRAMES_PER_STEP. A clip of up to `longest` is one
    window. Inside, a window begins `margin` before what is kept of it and ends as much after it.
    """
    if frames <= longest:
        return [Window(0, frames, slice(None))]
    found = []
    kept = 0
    while kept < frames:
        start = max(0, kept - margin)
        is_last = start + longest >= frames
        until = frames if is_last else start + longest - margin
        first = (kept - start) // FRAMES_PER_STEP
        last = None if is_last else (until - start) // FRAMES_PER_STEP
        found.append(Window(start, min(start + longest, frames), slice(first, last)))
        kept = until
    return found
