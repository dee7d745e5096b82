"""Claims about the acoustic measure: manners are told by pitch, rate and level alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common_utils.tiny_world.manner import STYLES
from osum_echat.errors import InputError
from osum_echat.evaluation.delivery import Delivery
from osum_echat.evaluation.reply_emotion import (
    MANNERS,
    PROTOTYPES,
    Acoustic,
    read_neutral,
    shifts,
)  # fmt: skip
from tests.evaluation.spoken import RATE_HZ, tone, write_wav

NEUTRAL = Delivery(pitch_hz=150.0, letters_per_s=14.0, level_db=-25.0, range_semitones=5.0)
HEAR = Acoustic(NEUTRAL)


def changed(semitones: float, rate: float, level_db: float, wider: float = 0.0) -> Delivery:
    return Delivery(150 * 2 ** (semitones / 12), 14 * rate, -25 + level_db, 5 + wider)


@pytest.mark.parametrize("found, label", [
    (NEUTRAL, "NEUTRAL"),
    (changed(0.3, 0.98, -0.5), "NEUTRAL"),
    (changed(2.8, 1.15, 4.0, 1.0), "HAPPY"),        # as the reply voice sounds when cheerful
    (changed(-1.2, 0.80, -8.2), "SAD"),             # soft
    (changed(1.9, 1.05, 2.8, 0.5), "SURPRISE"),     # brisk
    (changed(3.5, 1.0, 1.0, 6.0), "SURPRISE"),      # high and very wide
    (changed(0.5, 1.25, 5.0), "ANGER"),
    (changed(3.0, 1.25, -1.0, -3.0), "FEAR"),
])  # fmt: skip
def test_each_manner_is_told_by_its_shifts(found, label):
    emotion = HEAR.of(found)
    assert emotion is not None and emotion.label == label


def test_the_rival_of_a_label_is_another_label():
    between = changed(2.375, 1.025, 2.5, 3.25)      # midway between both prototypes of surprise
    emotion = HEAR.of(between)
    assert emotion.label == "SURPRISE" and emotion.margin > 0.05


def test_every_manner_of_the_reply_voice_stands_for_a_label_that_can_be_told():
    assert set(MANNERS) == set(STYLES)
    assert set(MANNERS.values()) <= {label for label, _ in PROTOTYPES}


def test_shifts_are_counted_in_steps_and_bounded():
    steps = shifts(changed(2.0, 1.2, -4.0, 3.0), NEUTRAL)
    assert steps == pytest.approx([2.0, 1.5, 2.0, -2.0])
    assert abs(shifts(changed(30.0, 5.0, 90.0, 90.0), NEUTRAL)).max() == 4.0


def test_the_margin_tells_how_clear_it_is():
    clear, doubtful = HEAR.of(NEUTRAL), HEAR.of(changed(1.0, 1.05, 1.0, 1.0))
    assert clear.margin == 1.0 and doubtful.margin < 0.2


def test_what_has_no_voice_has_no_emotion(tmp_path):
    assert HEAR.of(replace(NEUTRAL, pitch_hz=float("nan"))) is None
    assert HEAR(write_wav(tmp_path / "a.wav"), "hello there") is not None


def speaker(wave):
    reply = SimpleNamespace(wave=wave, sample_rate_hz=RATE_HZ)
    return SimpleNamespace(reply=lambda words, task, seed: reply)


def test_the_neutral_is_what_the_voice_reads_plainly():
    neutral = read_neutral(speaker(tone(120.0, 0.8, RATE_HZ)), "en")
    assert neutral.pitch_hz == pytest.approx(120, rel=0.1)


def test_a_voice_without_voiced_sound_has_no_neutral():
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, RATE_HZ).astype("f4"))
    for wave in (noise, None):
        with pytest.raises(InputError, match="take --reply-emotion own-model"):
            read_neutral(speaker(wave), "en")
