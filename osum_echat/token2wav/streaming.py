"""Speech that is made in pieces and sounds as if made whole.

A piece of tokens is solved together with some tokens before and after it, whose frames give it
context only. The frames behind it are a guess at what follows: the vocoder looks ahead into them,
and the next piece is blended over from them. Frames have absolute places, so nothing drifts, and
absolute noise, so two neighbouring pieces start from the same numbers.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from osum_echat.settings import check_numbers
from osum_echat.token2wav.flow import Flow, VoiceState, frames_for
from osum_echat.token2wav.voice import HOP_SAMPLES, MELS

BLOCK_ROWS = 64             # always drawn together, so that pieces cannot change the numbers
LARGEST_SEED = 2**31
MOST_TOGETHER = 8           # pieces of many streams, solved side by side


class Generators(NamedTuple):
    """Independent generators, all of the CPU, one for each use, so that no use shifts another."""

    prompt: torch.Generator         # what the frames of the prompt start from
    flow: torch.Generator           # what the frames of the speech start from
    source: torch.Generator         # the noise of the vocoder's source, and its phases


def generators(seed: int | None) -> Generators:
    """The generators of a seed; None takes one from torch's global generator."""
    first = None if seed is None else torch.Generator().manual_seed(seed)
    seeds = torch.randint(LARGEST_SEED, (len(Generators._fields),), generator=first).tolist()
    return Generators(*(torch.Generator().manual_seed(each) for each in seeds))


def mel_noise(drawn: Generators, prompt_frames: int, frames: int) -> Tensor:
    """What the mel of a whole utterance is solved from: (mel, prompt frames + frames)."""
    prompt = NoiseRows(MELS, drawn.prompt).take(0, prompt_frames)
    return torch.cat((prompt, NoiseRows(MELS, drawn.flow).take(0, frames))).T


class NoiseRows:
    """Standard normal rows, one a frame, drawn when they are needed and forgotten when passed."""

    def __init__(self, width: int, generator: torch.Generator | None) -> None:
        self.width, self.generator = width, generator
        self.first = 0
        self.rows = torch.empty(0, width)

    def take(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`: (rows, width). What is before `start` is forgotten then."""
        assert start >= self.first, f"row {start} was forgotten: the first one kept is {self.first}"
        missing = stop - self.first - len(self.rows)
        if missing > 0:
            blocks = [
                torch.randn(BLOCK_ROWS, self.width, generator=self.generator)
                for _ in range(-(-missing // BLOCK_ROWS))
            ]
            self.rows = torch.cat((self.rows, *blocks))
        self.rows, self.first = self.rows[start - self.first :], start
        return self.rows[: stop - start]


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How speech is cut into pieces, in tokens of 40 ms.

    first_tokens: of the first piece, which decides how soon sound comes, and of the second, which
    must be there when the first has been played; each later one is twice as long, up to
    `most_tokens`. left_tokens, ahead_tokens: context on either side. fade_frames: over how many
    mel frames (11.6 ms each) a piece is blended into the next.
    """

    first_tokens: int = 12
    most_tokens: int = 50
    left_tokens: int = 25
    ahead_tokens: int = 8
    fade_frames: int = 8

    def __post_init__(self) -> None:
        check_numbers(self, "stream", "most_tokens", 1)
        check_numbers(self, "stream", "first_tokens", 1, self.most_tokens)
        check_numbers(self, "stream", "left_tokens ahead_tokens fade_frames", 0)

    def size(self, number: int) -> int:
        """Tokens of the piece of that number, from 0."""
        return int(min(self.first_tokens * 2.0 ** min(max(number - 1, 0), 32), self.most_tokens))


class Piece(NamedTuple):
    """Tokens to solve together. Those from `start` to `stop` are wanted, the others context."""

    tokens: list[int]
    first: int              # number of the first of `tokens` in the utterance
    start: int
    stop: int
    is_last: bool


def pieces(tokens: Iterable[int], settings: StreamSettings) -> Iterator[Piece]:
    """Cut tokens while they come; a piece is given out as soon as those ahead of it are there.

    What is kept is bounded. No tokens at all give one empty piece.
    """
    held: list[int] = []
    first = start = number = 0
    for token in tokens:
        held.append(token)
        stop = start + settings.size(number)
        # One token more than is needed tells that this piece is not the last one.
        if first + len(held) > stop + settings.ahead_tokens:
            yield Piece(held[:-1], first, start, stop, is_last=False)
            passed = max(0, stop - settings.left_tokens) - first
            held, first = held[max(0, passed) :], max(first, first + passed)
            start, number = stop, number + 1
    yield Piece(held, first, start, first + len(held), is_last=True)


@dataclass(eq=False, slots=True)
class _Job:
    """A piece. tokens: (tokens,); first: its first one's number; noise: (mel, frames)."""

    tokens: Tensor
    voice: VoiceState
    first: int | None
    noise: Tensor
    due: float
    mel: "Future[Tensor]" = field(default_factory=Future)

    @property
    def kind(self) -> tuple[int, int, int, bool]:
        """What those that go side by side have in common."""
        return len(self.tokens), self.noise.shape[1], id(self.voice), self.first is None


class PieceSolver:
    """Solves the pieces of many streams, in a thread of its own, for callers in other threads.

    The most urgent goes first, and those like it beside: together they share what a pass costs
    whatever its size; no row of equal length is padded, so each comes out as it does alone. Between
    two steps of the flow's solver a piece lets more urgent ones pass: a long one that has time
    holds nobody up.
    """

    def __init__(
        self, flow: Flow, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """autocast: what the flow computes in."""
        self.flow, self.autocast = flow, autocast
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="pieces", daemon=True).start()

    def mel(
        self, tokens: Tensor, voice: VoiceState, first: int | None, noise: Tensor, due: float
    ) -> Tensor:
        """As `Flow.mels` of one row, (1, mel, frames); due: the monotonic second it is needed at.
        """
        job = _Job(tokens, voice, first, noise, due)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.mel.result()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
            self._let_pass(math.inf)

    def _let_pass(self, due: float) -> None:
        """Solve all that is due before that monotonic second."""
        while jobs := self._taken(due):
            try:
                with self.autocast():
                    mels = self.flow.mels(
                        [job.tokens for job in jobs], jobs[0].voice, [job.noise for job in jobs],
                        [job.first for job in jobs], partial(self._let_pass, jobs[0].due),
                    )  # fmt: skip
                for job, mel in zip(jobs, mels, strict=True):
                    job.mel.set_result(mel)
            except Exception as error:
                for job in jobs:
                    job.mel.set_exception(error)

    def _taken(self, before: float) -> list[_Job]:
        """The most urgent of those due before that second, and its like, which wait no longer."""
        with self._changed:
            self._waiting.sort(key=lambda job: job.due)
            if not self._waiting or self._waiting[0].due >= before:
                return []
            kind = self._waiting[0].kind
            jobs = [one for one in self._waiting if one.kind == kind][:MOST_TOGETHER]
            self._waiting = [one for one in self._waiting if one not in jobs]
            return jobs


class MelStream:
    """The mel of one utterance, piece by piece."""

    def __init__(
        self, flow: Flow, voice: VoiceState, drawn: Generators, fade_frames: int,
        solver: PieceSolver | None = None,
    ) -> None:  # fmt: skip
        """solver: that streams share, None: pieces are solved here."""
        self.flow, self.voice, self.solver = flow, voice, solver
        self.fade_frames = fade_frames
        self.prompt_noise = NoiseRows(MELS, drawn.prompt).take(0, voice.known.shape[1])
        self.noise = NoiseRows(MELS, drawn.flow)
        self.guess: Tensor | None = None

    def solve(self, piece: Piece, due: float = 0.0) -> tuple[Tensor, int]:
        """The piece's frames and behind them a guess of those that follow: (1, mel, frames); and
        how many are the piece's own. due: the monotonic second at which its sound is needed.
        Raises InputError for ids out of range, or no tokens."""
        rate = self.flow.settings.tokens_per_s
        ids = torch.tensor(piece.tokens, dtype=torch.long, device=self.voice.tokens.device)
        self.flow.check(ids)
        first, start, stop, end = (
            frames_for(number, rate)
            for number in (piece.first, piece.start, piece.stop, piece.first + len(piece.tokens))
        )
        noise = torch.cat((self.prompt_noise, self.noise.take(first, end))).T
        place = None if piece.start == 0 and piece.is_last else piece.first
        if self.solver is None:
            (mel,) = self.flow.mels([ids], self.voice, [noise], [place])
        else:
            mel = self.solver.mel(ids, self.voice, place, noise, due)
        mel = mel.float()[:, :, start - first :]
        if self.guess is not None:
            mel = blended(self.guess, mel, 2)
        self.guess = mel[:, :, stop - start :][:, :, : self.fade_frames]
        return mel, stop - start


@dataclass(frozen=True, slots=True)
class Past:
    """The last frames that were made into sound, and where the source stood after them.

    mel: (1, 80, frames); pitch: (rows, frames), as the vocoder's own; turns: (waves,) in double
    precision, cycles of each wave of the source at the end of these frames. Without a source there
    are no rows and no waves.
    """

    mel: Tensor
    pitch: Tensor
    turns: Tensor

    @property
    def frames(self) -> int:
        return self.mel.shape[2]


class Vocoder(Protocol):
    """What a vocoder does. Its random part comes in, its state goes out as a value."""

    noise_width: int        # normal numbers that a frame's source needs
    reach_frames: int       # on either side, that can change a frame's sound

    def begin(self, generator: torch.Generator | None = None) -> Past:
        """No frames yet; the source's phases are drawn."""

    def render(self, mel: Tensor, noise: Tensor, past: Past, new: int) -> tuple[Tensor, Past]:
        """Make sound of the past's frames, `new` ones, and provisional ones behind them.

        mel: (1, 80, frames), without the past's; noise: (past and mel frames, noise_width).
        Returns the wave (1, samples) of all these frames, past ones too, and the past after the
        new ones, as long as `reach_frames`.
        """


def whole_wave(vocoder: Vocoder, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A log-mel (1, 80, frames) as sound in one piece: (1, samples)."""
    past, frames = vocoder.begin(generator), mel.shape[2]
    noise = NoiseRows(vocoder.noise_width, generator).take(0, frames)
    return vocoder.render(mel, noise.to(mel.device), past, frames)[0]


class WaveStream:
    """The sound of one mel, piece by piece. A piece's end is blended into the next one's start."""

    def __init__(self, vocoder: Vocoder, generator: torch.Generator, fade_frames: int) -> None:
        self.vocoder = vocoder
        self.past = vocoder.begin(generator)
        self.noise = NoiseRows(vocoder.noise_width, generator)
        self.fade_frames = fade_frames
        self.done_frames = 0
        self.tail: Tensor | None = None

    def push(self, mel: Tensor, new: int) -> Tensor:
        """mel: (1, 80, frames), of which the first `new` are final and the others only a guess of
        what follows. Returns the sound of the new ones, (samples,)."""
        mel = mel[:, :, : new + self.vocoder.reach_frames]
        begun = self.past.frames
        first = self.done_frames - begun
        noise = self.noise.take(first, first + begun + mel.shape[2]).to(mel.device)
        wave, self.past = self.vocoder.render(mel, noise, self.past, new)
        self.done_frames += new
        made = wave[0, begun * HOP_SAMPLES :]
        if self.tail is not None:
            made = blended(self.tail, made, 0)
        end = new * HOP_SAMPLES
        self.tail = made[end : end + self.fade_frames * HOP_SAMPLES]
        return made[:end]


def blended(old: Tensor, new: Tensor, axis: int) -> Tensor:
    """`new`, its start faded over from `old`, which describes the same stretch along `axis`."""
    length = min(old.shape[axis], new.shape[axis])
    shape = [length if each == axis else 1 for each in range(new.dim())]
    share = ((torch.arange(length, device=new.device) + 0.5) / max(1, length)).view(shape)
    start = torch.lerp(old.narrow(axis, 0, length), new.narrow(axis, 0, length), share.to(new))
    return torch.cat((start, new.narrow(axis, length, new.shape[axis] - length)), axis)
