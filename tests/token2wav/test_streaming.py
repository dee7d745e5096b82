"""Claims about speech made while its tokens come: pieces, samples, joins, no shared state."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.token2wav import streaming
from osum_echat.token2wav.flow import frames_for
from osum_echat.token2wav.model import Token2Wav
from osum_echat.token2wav.streaming import MelStream, StreamSettings, generators, pieces
from osum_echat.token2wav.voice import VoicePrompt
from tests.token2wav.tiny_flow import CODES, write_directory

SHIPPED = Path(__file__).parents[2] / "pretrained" / "tiny" / "token2wav"
SMALL = StreamSettings(first_tokens=4, most_tokens=10, left_tokens=6, ahead_tokens=3, fade_frames=4)
WIDE = replace(SMALL, left_tokens=500, ahead_tokens=500)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Token2Wav:
    return Token2Wav.load(write_directory(tmp_path_factory.mktemp("token2wav")))


def some(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (count,), generator=generator).tolist()


def voice() -> VoicePrompt:
    torch.manual_seed(8)
    return VoicePrompt(torch.tensor([some(12)]), torch.randn(1, 41, 80), torch.randn(1, 192))


def mel_of(speaker: Token2Wav, tokens: list[int], settings: StreamSettings) -> torch.Tensor:
    state = speaker.flow.voice_state(voice())
    solver = MelStream(speaker.flow, state, generators(1), settings.fade_frames)
    made = (solver.solve(piece) for piece in pieces(tokens, settings))
    return torch.cat([mel[:, :, :new] for mel, new in made], dim=2)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30, 31, 100])
def test_pieces_keep_every_token_once_and_in_order(count: int):
    found = list(pieces(range(count), SMALL))
    wanted = [t for one in found for t in one.tokens[one.start - one.first : one.stop - one.first]]
    assert wanted == list(range(count))
    assert [one.is_last for one in found] == [False] * (len(found) - 1) + [True]
    assert all(one.first >= max(0, one.start - SMALL.left_tokens) for one in found)
    most = SMALL.left_tokens + SMALL.most_tokens + SMALL.ahead_tokens
    assert all(len(one.tokens) <= most for one in found)


def test_a_piece_comes_as_soon_as_it_can():
    taken = []

    def slow() -> Iterator[int]:
        for token in range(100):
            taken.append(token)
            yield token

    next(pieces(slow(), SMALL))
    assert len(taken) == SMALL.first_tokens + SMALL.ahead_tokens + 1


@pytest.mark.parametrize("count", [1, 7, 8, 20, 41, 97])
@pytest.mark.parametrize("settings", [SMALL, StreamSettings(), replace(SMALL, ahead_tokens=0)])
def test_a_stream_has_the_samples_of_the_whole(speaker, count, settings):
    made = list(speaker.stream(some(count), voice(), seed=1, settings=settings))
    assert sum(map(len, made)) == len(speaker(some(count), voice(), seed=1))
    assert all(piece.dtype == torch.float32 and piece.dim() == 1 for piece in made)


def test_with_all_tokens_around_the_mel_does_not_depend_on_the_pieces(speaker: Token2Wav):
    tokens = some(60)
    one, two = (mel_of(speaker, tokens, replace(WIDE, ahead_tokens=59 - first, first_tokens=first))
                for first in (4, 9))  # fmt: skip
    state = speaker.flow.voice_state(voice())
    solver = MelStream(speaker.flow, state, generators(1), 0)
    whole, _ = solver.solve(streaming.Piece(tokens, 0, 0, len(tokens), is_last=False))
    assert one.shape == whole.shape == (1, 80, frames_for(60, 25))
    # The first piece lacks the last token only, and the second sees all.
    assert (one - whole).abs()[:, :, 40:].max() < 1e-4
    assert (two - whole).abs()[:, :, 40:].max() < 1e-4


def test_streams_at_once_share_nothing(speaker: Token2Wav):
    calls = [(some(60, seed), seed) for seed in (1, 2)]
    alone = [list(speaker.stream(tokens, seed=seed, settings=SMALL)) for tokens, seed in calls]
    running = [speaker.stream(tokens, seed=seed, settings=SMALL) for tokens, seed in calls]
    mixed: list[list[torch.Tensor]] = [[], []]
    for both in zip(*running, strict=True):
        for made, piece in zip(mixed, both, strict=True):
            made.append(piece)
    for one, other in zip(alone, mixed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_cannot_be_spoken_is_refused(speaker: Token2Wav):
    for tokens in ([], [1, CODES], [-1]):
        with pytest.raises(InputError, match="speech token"):
            list(speaker.stream(tokens))


def test_the_shipped_model_streams_without_clicks():
    shipped = Token2Wav.load(SHIPPED)
    tokens = torch.randint(2048, (70,), generator=torch.Generator().manual_seed(4)).tolist()
    made = list(shipped.stream(tokens, seed=1))
    whole = shipped(tokens, seed=1)
    joins = torch.tensor([len(piece) for piece in made]).cumsum(0)[:-1] - 1
    assert sum(map(len, made)) == len(whole)
    assert torch.cat(made).diff().abs()[joins].max() <= whole.diff().abs().max()


# The noise of a call: pieces, seeds and uses do not change each other's numbers.

def test_streams_due_together_are_solved_side_by_side_and_sound_as_alone(speaker, monkeypatch):
    mel = voice().mel.repeat(1, 3, 1)
    prepared = VoicePrompt(torch.tensor([some(40)]), mel, torch.ones(1, 192))
    lists = [some(30, 1), some(30, 2), some(19, 3)]
    shared = speaker.in_voice(prepared)
    state = shared.prepare_voice(prepared)
    alone = [torch.cat(list(shared.stream(one, state, 5, SMALL))) for one in lists]
    shared.share()
    together: list[int] = []
    solve = shared.flow.mels

    def counted(rows, *more):
        together.append(len(rows))
        time.sleep(0.05)        # so that others come meanwhile
        return solve(rows, *more)

    monkeypatch.setattr(shared.flow, "mels", counted)
    with ThreadPoolExecutor(3) as pool:
        streams = [shared.stream(one, None, 5, SMALL) for one in lists]
        made = list(pool.map(lambda one: torch.cat(list(one)), streams))
    for sound, own in zip(made, alone, strict=True):
        assert torch.allclose(sound, own, atol=1e-4)
    assert max(together) >= 2
    with pytest.raises(InputError, match="speech token"):
        list(shared.stream([CODES], None, 5, SMALL))


def test_a_long_piece_lets_a_more_urgent_one_pass_between_two_steps():
    begun, waits, ended = threading.Event(), threading.Event(), []

    class Slow:
        def mels(self, rows: Any, state: Any, noises: Any, firsts: Any, between: Any) -> Any:
            if len(rows[0]) == 9:
                begun.set()
                assert waits.wait(5)
            between()
            ended.append(len(rows[0]))
            return list(rows)

    state: Any = None
    flow: Any = Slow()
    solver = streaming.PieceSolver(flow, nullcontext)

    def ask(tokens: int, due: float) -> None:
        solver.mel(torch.zeros(tokens), state, 0, torch.zeros(80, 4), due)

    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, 9, 3.0)]
        assert begun.wait(5)
        asked += [pool.submit(ask, tokens, due) for tokens, due in ((7, 4.0), (2, 2.0), (1, 1.0))]
        while len(solver._waiting) < 3:
            time.sleep(0.001)
        waits.set()
        for one in asked:
            one.result(5)
    assert ended == [1, 2, 9, 7]
