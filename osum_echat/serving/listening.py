"""The sound of one live session: kept while it may be needed, heard window by window for turns."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np

from osum_echat.serving.audio_formats import Resampler, Samples
from osum_echat.serving.protocol import EventError
from osum_echat.serving.turns import (
    RATE_HZ,
    WINDOW_SAMPLES,
    Turn,
    TurnDetector,
    TurnSettings,
    VoiceActivity,
    VoiceState,
    level_db,
)

MOST_WINDOWS = 960              # waiting for the voice activity: 30 s of sound
MOST_AT_ONCE = 16               # of them, heard in one call where a busy machine lags behind
KEPT_BEFORE_S = 6.0             # of sound before a turn begins: padding is cut from it
MOST_KEPT_S = 120.0             # of all sound: the longest turn, and what waits to be heard


class InputBuffer:
    """What was heard and may still be needed, (samples,) at 16 kHz, by its place in the session."""

    def __init__(self) -> None:
        self._pieces: list[Samples] = []
        self.start = self.end = 0       # samples since the session's first

    def push(self, samples: Samples) -> None:
        self._pieces.append(samples)
        self.end += len(samples)
        self.drop_before(self.end - round(MOST_KEPT_S * RATE_HZ))

    def cut(self, start: int, end: int) -> Samples:
        """What lies between two places, as far as it is still there."""
        whole = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        self._pieces = [whole]
        return whole[max(0, start - self.start) : max(0, end - self.start)]

    def drop_before(self, place: int) -> None:
        """Let go of what is older."""
        while self._pieces and self.start + len(self._pieces[0]) <= place:
            self.start += len(self._pieces.pop(0))


class Listener:
    """Takes sound and tells turns, one after the other; a window that fails harms no later one."""

    def __init__(
        self, activity: VoiceActivity, rate_hz: int, turn: TurnSettings | None,
        replying: Callable[[], bool],
        told: Callable[[Turn, int], Awaitable[None]], failed: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        """rate_hz: of what comes; turn: None hears nothing; replying: whether a reply is given or
        plays; told: gets each turn and its place, a sample of the session."""
        self.activity, self._replying, self._told, self._failed = activity, replying, told, failed
        self.buffer, self.lag_s = InputBuffer(), 0.0    # between what came and what was heard
        self._left, self._voice = np.zeros(0, np.float32), VoiceState()
        self._windows: asyncio.Queue[tuple[Samples, int]] = asyncio.Queue(MOST_WINDOWS)
        self._resampler = Resampler(rate_hz, RATE_HZ)
        self.use_turn(turn)
        self.task = asyncio.create_task(self._run())

    def use_rate(self, rate_hz: int) -> None:
        """From now on; what was still being resampled belongs to the sound before."""
        self.buffer.push(self._resampler.push(np.zeros(0, np.float32), last=True))
        self._resampler = Resampler(rate_hz, RATE_HZ)

    def use_turn(self, turn: TurnSettings | None) -> None:
        self.detector, self._hears = TurnDetector(turn or TurnSettings()), turn is not None

    def push(self, samples: Samples, is_muted: bool) -> int:
        """Take sound, or as much silence. Returns how many samples it has at 16 kHz.

        Raises EventError where it comes faster than it can be heard.
        """
        samples = self._resampler.push(samples)
        if is_muted:
            samples = np.zeros_like(samples)
        self.buffer.push(samples)
        if not self._hears:
            return len(samples)
        self._left = np.concatenate((self._left, samples))
        end = self.buffer.end - len(self._left)
        while len(self._left) >= WINDOW_SAMPLES:
            window, self._left = self._left[:WINDOW_SAMPLES], self._left[WINDOW_SAMPLES:]
            end += WINDOW_SAMPLES
            if self._windows.full():
                self._left = self._left[:0]
                raise EventError("input_backpressure", "sound comes faster than it can be heard")
            self._windows.put_nowait((window, end))
        return len(samples)

    def clear(self) -> None:
        """Forget a turn that has begun, and what was not heard yet."""
        while not self._windows.empty():
            self._windows.get_nowait()
        self._left = np.zeros(0, np.float32)
        self.detector.reset()

    def end_turn(self) -> None:
        """The next sound is heard as if it were the first."""
        self.detector.reset()
        self._voice = VoiceState()

    async def _run(self) -> None:
        while True:
            waiting = [await self._windows.get()]
            while len(waiting) < MOST_AT_ONCE and not self._windows.empty():
                waiting.append(self._windows.get_nowait())
            try:
                windows = [window for window, _ in waiting]
                found = await self.activity.probabilities(self._voice, windows)
                for (window, end), probability in zip(waiting, found, strict=True):
                    await self._hear(window, end, probability)
            except Exception as error:
                self._failed(error)

    async def _hear(self, window: Samples, end: int, probability: float) -> None:
        if not self._hears:
            return
        turn = self.detector.push(probability, end, self._replying(), level_db(window))
        self.lag_s = (self.buffer.end - end) / RATE_HZ
        if turn is not None:
            await self._told(turn, end)
        elif not self.detector.in_turn:
            self.buffer.drop_before(end - round(KEPT_BEFORE_S * RATE_HZ))
