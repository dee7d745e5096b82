"""Claims about turns: what begins one, what ends one, and what breaks into a reply."""

import asyncio
from collections.abc import Iterable

import numpy as np
import pytest

from osum_echat.serving.turns import Turn, TurnDetector, TurnSettings, VoiceActivity, VoiceState

WINDOW = 512
LOUD, FAINT = (0.9, -20.0), (0.9, -90.0)        # likeliness of speech, level in dB


def turns_of(detector: TurnDetector, heard: Iterable, speaks: bool = False, first: int = 0) -> list:
    """What each window leads to: its likeliness, or that and its level; while a reply speaks."""
    given = (one if isinstance(one, tuple) else (one,) for one in heard)
    return [detector.push(likely, (first + at) * WINDOW, speaks, *level)
            for at, (likely, *level) in enumerate(given)]  # fmt: skip


def test_an_answer_of_one_word_does_not_stop_a_reply_under_semantic_vad():
    detector = TurnDetector(TurnSettings("semantic_vad"))
    words = [0.9] * 10 + [0.3] * 2 + [0.9] * 8 + [0.0] * 9      # "uh-huh", and words that fade
    levels = [-20.0] * 14 + [-30.0] * (len(words) + 8)
    levels = [*levels[: len(words)], -20.0, *levels[14:]]
    turns = turns_of(detector, zip([*words, *[0.9] * 22], levels, strict=False), True)
    assert turns.index(Turn.STARTED) == len(words) + 20 and not detector.push(0.9, 0, True)


def test_windows_that_wait_are_heard_in_one_call_as_they_are_one_by_one():
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, (count, WINDOW)).astype(np.float32) for count in (5, 2)]
    activity, alone = VoiceActivity(), []
    for sound in sounds:
        state = VoiceState()
        alone.append([activity.run([state], [window])[0] for window in sound])

    async def together() -> list[list[float]]:
        asked = [activity.probabilities(VoiceState(), [*sound]) for sound in sounds]
        return list(await asyncio.gather(*asked))

    for found, wanted in zip(asyncio.run(together()), alone, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_silence_is_counted_from_where_the_sound_ended():
    heard = [LOUD] * 20 + [FAINT] * 3 + [(0.0, -90.0)] * 20
    turns = turns_of(TurnDetector(TurnSettings(silence_duration_ms=300)), heard)
    assert turns.index(Turn.PAUSED) == 22 and turns.index(Turn.ENDED) == 28


@pytest.mark.parametrize(("quiet", "told"), [
    (2, []), (4, [(22, Turn.PAUSED), (24, Turn.RESUMED)]),
    (8, [(22, Turn.PAUSED), (24, Turn.RESUMED)]),      # soft speech, not the end of loud speech
])  # fmt: skip
def test_a_reply_is_prepared_once_a_pause_and_not_at_a_stop_within_a_word(quiet: int, told: list):
    heard = [LOUD] * 20 + [FAINT] * quiet + [LOUD] * 20
    turns = turns_of(TurnDetector(TurnSettings(silence_duration_ms=300)), heard)
    assert [(at, turn) for at, turn in enumerate(turns) if turn is not None][1:] == told


@pytest.mark.parametrize("silence_ms", [200, 500, 1000])
def test_silence_ends_a_turn_after_as_long_as_was_asked(silence_ms: int):
    detector = TurnDetector(TurnSettings(silence_duration_ms=silence_ms))
    turns = turns_of(detector, [1.0] * 20 + [0.0] * 79, first=1)
    found = [(turn, number) for number, turn in enumerate(turns, 1) if turn is not None]
    assert [turn for turn, _ in found] == [Turn.STARTED, Turn.PAUSED, Turn.ENDED]
    assert (found[-1][1] - 20) * 32 == pytest.approx(silence_ms, abs=32)
    assert found[0][1] == 3 and detector.start_sample == 0


@pytest.mark.parametrize(("gap", "windows"), [(3, 11), (4, 3), (60, 3)])
def test_a_turn_begins_with_the_faint_sound_that_grew_into_speech(gap: int, windows: int):
    detector = TurnDetector(TurnSettings(prefix_padding_ms=0))
    heard = [0.0] * 20 + [0.2] * 5 + [0.0] * gap + [0.9] * 3
    assert turns_of(detector, heard, first=1)[-1] is Turn.STARTED
    assert detector.start_sample == (len(heard) - windows) * WINDOW


def test_a_turn_that_never_ends_is_ended():
    assert Turn.ENDED in turns_of(TurnDetector(TurnSettings()), [1.0] * 999, first=1)


def test_a_semantic_turn_waits_for_its_model():
    detector = TurnDetector(TurnSettings("semantic_vad", eagerness="high"))
    turns = turns_of(detector, [1.0] * 9 + [0.0] * 90, first=1)
    assert (turns.index(Turn.ENDED) + 1 - 9) * 32 == pytest.approx(2000, abs=32)
    detector = TurnDetector(TurnSettings("semantic_vad"))
    turns_of(detector, [1.0] * 9, first=1)
    for number in range(10, 20):
        turn = detector.push(0.0, number * WINDOW, False)
        detector.complete = detector.complete or turn is Turn.PAUSED
        if turn is Turn.ENDED:
            break
    assert (number - 9) * 32 == 288
