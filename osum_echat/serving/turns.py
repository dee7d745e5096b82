"""Whose turn it is: voice activity of many sessions in one call, and what begins and ends a turn;
the sound of a session, kept while it may be needed and heard window by window.

Source of the window, context and hysteresis: Silero VAD v6 (MIT), whose ONNX file its package
brings; of the turn model: Smart Turn v3.2 (BSD-2), an ONNX file of its own.
"""

import asyncio
import importlib.util
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat.errors import InputError
from osum_echat.serving.audio_formats import Resampler, Samples
from osum_echat.serving.protocol import EventError, TurnSettings

RATE_HZ = 16_000
WINDOW_SAMPLES, CONTEXT_SAMPLES = 512, 64           # 32 ms, and what the model sees before it
WINDOW_MS = 1000 * WINDOW_SAMPLES // RATE_HZ
STATE_SHAPE = (2, 1, 128)
HYSTERESIS = 0.15                                   # below the threshold by so much is silence
START_MS = 96                                       # of speech before a turn begins
INTERRUPT_MS = {"server_vad": (300, 300), "semantic_vad": (480, 670)}   # over a reply: of speech in
FADE_DB = 6                         # full voice, and fading, as "uh-huh" does: below its loudest
FAINT, FAINT_GAP, LOOK_BACK_MS = 0.1, 3, 1000       # likely enough to belong to speech that follows
FAINT_COUNTED = 4           # of its windows, as speech over a reply: the VAD doubts a first sound
PAUSE_MS = {"server_vad": 96, "semantic_vad": 128}  # of quiet before a reply is prepared
COMPLETE_MS = 300           # that ends a turn of which the turn model says that it is done
QUIET_DB = 25                                       # below a turn's loudest window is no speech
HANGOVER = 4                                        # windows for which the model still hears it
LONGEST_TURN_S = 30.0
WAIT_MS = {"low": 8000, "medium": 4000, "auto": 4000, "high": 2000}     # of semantic_vad, at most
TURN_MODEL_S = 8                                    # of sound that the turn model hears
MOST_WINDOWS = 960              # waiting for the voice activity: 30 s of sound
MOST_AT_ONCE = 16               # of them, heard in one call where a busy machine lags behind
KEPT_BEFORE_S = 6.0             # of sound before a turn begins: padding is cut from it
MOST_KEPT_S = 120.0             # of all sound: the longest turn, and what waits to be heard


class Turn(Enum):
    """What a window of sound decided."""

    STARTED = "started"         # someone speaks
    PAUSED = "paused"           # a short silence: a reply may be prepared
    RESUMED = "resumed"         # speech goes on after such a pause
    ENDED = "ended"


@dataclass(slots=True)
class TurnDetector:
    """Speech probabilities of one session, window by window, to the beginnings and ends of turns.

    start_sample, end_sample: of the turn under way, counted from the session's first sample.
    """

    settings: TurnSettings
    start_sample: int = 0
    end_sample: int = 0
    in_turn: bool = False
    complete: bool | None = None    # of a semantic turn: what the turn model said at this pause
    _speech: int = 0                # windows in a row
    _silence: int = 0
    _faint: int = 0                 # windows since faint speech began, that may have been its start
    _gap: int = 0                   # windows since the last of them
    _quiet: int = 0                 # windows in a row that are far below the loudest
    _paused: bool = False           # a reply is being prepared
    _loudest_db: float = -math.inf
    _last_db: float = -math.inf     # of the window before

    def push(
        self, probability: float, end_sample: int, replying: bool, level_db: float = 0.0
    ) -> Turn | None:
        """Take a window that ends at a sample. replying: a reply is being given or played."""
        self.end_sample = end_sample
        if not self.in_turn:
            return self._wait(probability, end_sample, replying, level_db)
        self._loudest_db = max(self._loudest_db, level_db)
        self._quiet = self._quiet + 1 if level_db < self._loudest_db - QUIET_DB else 0
        if probability >= self.settings.threshold:
            self._silence = 0
            if not 0 < self._quiet <= HANGOVER:     # speech, not its echo in the model
                self.complete = None
                if self._paused:
                    self._paused = False
                    return Turn.RESUMED
        elif self._silence:
            self._silence += 1
        elif probability < max(self.settings.threshold - HYSTERESIS, 0.01):
            self._silence = 1 + min(max(self._quiet - 1, 0), HANGOVER)
        too_long = end_sample - self.start_sample > LONGEST_TURN_S * RATE_HZ
        # Speech ends within a window: half of that is silence too.
        half = WINDOW_MS // 2 if self._silence else 0
        if too_long or self._silence * WINDOW_MS + half >= self._needed_ms():
            self.reset()
            return Turn.ENDED
        return self._pause()

    def _pause(self) -> Turn | None:
        """Tell a pause once: sound that falls off is one before the model no longer hears it."""
        calm = max(self._silence, self._quiet if self._quiet <= HANGOVER else 0)
        if self._paused or calm * WINDOW_MS < PAUSE_MS[self.settings.kind]:
            return None
        self._paused = True
        return Turn.PAUSED

    def _wait(
        self, probability: float, end_sample: int, replying: bool, level_db: float
    ) -> Turn | None:
        over_reply = self.settings.kind if replying else None
        self._gap = 0 if probability >= FAINT else self._gap + 1
        if self._faint or not self._gap:
            self._faint = 0 if self._gap > FAINT_GAP else self._faint + 1
        is_speech = probability >= self.settings.threshold
        goes_on = over_reply == "server_vad" and self._speech
        if is_speech or (goes_on and probability >= self.settings.threshold - HYSTERESIS):
            if over_reply == "server_vad" and not self._speech:
                self._speech = max(0, min(self._faint - 1, FAINT_COUNTED))
            self._speech += 1
        elif not (over_reply == "semantic_vad" and self._faint):
            self._speech = 0
        self._loudest_db = max(self._loudest_db, level_db) if self._speech else -math.inf
        is_full = is_speech and max(self._last_db, level_db) >= self._loudest_db - FADE_DB
        self._last_db = level_db
        full_ms, fading_ms = INTERRUPT_MS[over_reply] if over_reply else (START_MS, START_MS)
        if self._speech * WINDOW_MS < (full_ms if is_full else fading_ms):
            return None
        padding = self.settings.prefix_padding_ms * RATE_HZ // 1000
        windows = max(self._speech, min(self._faint, LOOK_BACK_MS // WINDOW_MS))
        self.start_sample = max(0, end_sample - windows * WINDOW_SAMPLES - padding)
        self.in_turn, self._silence, self._quiet = True, 0, 0
        return Turn.STARTED

    def _needed_ms(self) -> int:
        """Silence that ends the turn."""
        if self.settings.kind != "semantic_vad":
            return max(self.settings.silence_duration_ms, WINDOW_MS)
        return COMPLETE_MS if self.complete else WAIT_MS[self.settings.eagerness]

    def reset(self) -> None:
        """Forget what was heard: the next speech begins a turn."""
        self.in_turn, self.complete, self._paused = False, None, False
        self._speech = self._silence = self._faint = self._gap = self._quiet = 0
        self._loudest_db = -math.inf


@dataclass(slots=True)
class VoiceState:
    """What the VAD model keeps of one session."""

    memory: np.ndarray[Any, Any] = field(
        default_factory=lambda: np.zeros(STATE_SHAPE, np.float32)
    )
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, np.float32))


_Heard = tuple[VoiceState, list[Samples], "asyncio.Future[list[float]]"]


class VoiceActivity:
    """Silero VAD for all sessions: what is due at the same time goes through it in one call."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises InputError where the package with the model is missing."""
        self._model = _onnx_model(path or silero_file())
        self._due: list[_Heard] = []
        self._work: asyncio.Task[None] | None = None

    async def probabilities(self, state: VoiceState, windows: list[Samples]) -> list[float]:
        """How likely each window, (512,) at 16 kHz, is speech: those of a session that wait, in
        their order. A session asks once at a time."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[float]] = loop.create_future()
        self._due.append((state, windows, answer))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        while self._due:
            batch, self._due = self._due, []
            found: list[Any]                # of each session: its probabilities, or what failed
            try:
                found = await asyncio.to_thread(self._run_all, batch)
            except Exception as error:
                found = [error] * len(batch)
            for (*_, answer), value in zip(batch, found, strict=True):
                if answer.done():           # its session is gone
                    continue
                if isinstance(value, Exception):
                    answer.set_exception(value)
                else:
                    answer.set_result(value)

    def _run_all(self, batch: list[_Heard]) -> list[list[float]]:
        """The first windows of all sessions in one call, then the second ones."""
        found: list[list[float]] = [[] for _ in batch]
        for step in range(max(len(windows) for _, windows, _ in batch)):
            rows = [row for row, one in enumerate(batch) if step < len(one[1])]
            values = self.run([batch[row][0] for row in rows],
                              [batch[row][1][step] for row in rows])  # fmt: skip
            for row, value in zip(rows, values, strict=True):
                found[row].append(value)
        return found

    def run(self, states: list[VoiceState], windows: list[Samples]) -> list[float]:
        """Probabilities of one window of each session; the states go on."""
        given = np.stack([np.concatenate((state.context, window))
                          for state, window in zip(states, windows, strict=True)])  # fmt: skip
        found, memory = self._model.run(None, {
            "input": given, "state": np.concatenate([state.memory for state in states], axis=1),
            "sr": np.array(RATE_HZ, np.int64),
        })  # fmt: skip
        for number, (state, window) in enumerate(zip(states, windows, strict=True)):
            state.memory = memory[:, number : number + 1]
            state.context = window[-CONTEXT_SAMPLES:]
        return [float(value) for value in found[:, 0]]


def level_db(window: Samples) -> float:
    """Loudness of (samples,) against full scale, never below -100."""
    return 10 * math.log10(float(np.square(window).mean()) + 1e-10)


def silero_file() -> Path:
    """The ONNX file inside the silero-vad package, which is not imported."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        raise InputError("voice activity needs one more package: pip install silero-vad")
    return Path(found.origin).parent / "data" / "silero_vad.onnx"


def _onnx_model(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class TurnModel:
    """Smart Turn: is the speaker done, judged by how the words so far sound.

    It hears the last 8 s, silence before them, at zero mean and unit variance of the whole.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that is not there or not this model."""
        try:
            self._model = _onnx_model(path)
        except Exception as error:
            raise InputError(f"turn model {path}: cannot be read ({error})") from error

    def is_complete(self, samples: Samples) -> bool:
        """samples: (samples,) of the turn at 16 kHz, of which the last 8 s count."""
        import torch

        from osum_echat import audio

        wanted = TURN_MODEL_S * RATE_HZ
        given = np.zeros(wanted, np.float32)
        last = samples[-wanted:]
        given[wanted - len(last) :] = last
        given = (given - given.mean()) / np.sqrt(given.var() + np.float32(1e-7))
        features = audio.log_mel(torch.from_numpy(given), 80).T[None]
        (found,) = self._model.run(None, {"input_features": features.numpy()})
        return float(np.asarray(found).reshape(-1)[0]) > 0.5


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
