"""Speech tokens that come one by one to a mel in pieces, each from a bounded stretch of tokens.

A piece of tokens is solved together with some tokens before and after it, whose frames give it
context only. The frames behind it are a guess at what follows: the vocoder looks ahead into them,
and the next piece is blended over from them. Frames have absolute places, so nothing drifts, and
absolute noise, so two neighbouring pieces start from the same numbers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from osum_echat.errors import ConfigError
from osum_echat.token2wav.flow import Flow, VoiceState, frames_for
from osum_echat.token2wav.noise import NoiseRows, Streams
from osum_echat.token2wav.voice import MELS
from osum_echat.token2wav.wave_stream import blended


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How speech is cut into pieces, in tokens of 40 ms.

    first_tokens: of the first piece, which decides how soon sound comes; each later piece is
    twice as long, up to `most_tokens`. left_tokens, ahead_tokens: context on either side.
    prompt_tokens: at most so many of a voice's last ones, None for all. fade_frames: over how
    many mel frames (11.6 ms each) a piece is blended into the next.
    """

    first_tokens: int = 12
    most_tokens: int = 50
    left_tokens: int = 25
    ahead_tokens: int = 8
    prompt_tokens: int | None = None
    fade_frames: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.first_tokens <= self.most_tokens:
            raise ConfigError(
                f"stream: first_tokens {self.first_tokens}, most_tokens {self.most_tokens}; "
                "need 1 <= first_tokens <= most_tokens"
            )
        for name in ("left_tokens", "ahead_tokens", "fade_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"stream.{name} {getattr(self, name)}: must be 0 or more")
        if self.prompt_tokens is not None and self.prompt_tokens < 0:
            raise ConfigError(f"stream.prompt_tokens {self.prompt_tokens}: must be 0 or more")

    def size(self, number: int) -> int:
        """Tokens of the piece of that number, from 0."""
        return int(min(self.first_tokens * 2.0 ** min(number, 32), self.most_tokens))


class Piece(NamedTuple):
    """Tokens to solve together. Those from `start` to `stop` are wanted, the others context."""

    tokens: list[int]
    first: int              # number of the first of `tokens` in the utterance
    start: int
    stop: int
    is_last: bool

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.is_last


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


class MelStream:
    """The mel of one utterance, piece by piece."""

    def __init__(
        self, flow: Flow, voice: VoiceState, streams: Streams, fade_frames: int
    ) -> None:
        self.flow, self.voice = flow, voice
        self.fade_frames = fade_frames
        self.prompt_noise = NoiseRows(MELS, streams.prompt).take(0, voice.known.shape[1])
        self.noise = NoiseRows(MELS, streams.flow)
        self.guess: Tensor | None = None

    def solve(self, piece: Piece) -> tuple[Tensor, int]:
        """The piece's frames and behind them a guess of those that follow: (1, mel, frames); and
        how many are the piece's own. Raises InputError for ids out of range, or no tokens."""
        rate = self.flow.settings.tokens_per_s
        ids = torch.tensor([piece.tokens], dtype=torch.long, device=self.voice.tokens.device)
        self.flow.check(ids)
        first, start, stop, end = (
            frames_for(number, rate)
            for number in (piece.first, piece.start, piece.stop, piece.first + len(piece.tokens))
        )
        noise = torch.cat((self.prompt_noise, self.noise.take(first, end))).T.unsqueeze(0)
        place = None if piece.is_whole else piece.first
        mel = self.flow.mel(ids, self.voice, first=place, noise=noise).float()
        mel = mel[:, :, start - first :]
        if self.guess is not None:
            mel = blended(self.guess, mel, 2)
        self.guess = mel[:, :, stop - start :][:, :, : self.fade_frames]
        return mel, stop - start
