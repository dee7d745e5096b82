"""Claims about the acoustic measure: manners are told by pitch, rate and level alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from osum_echat.errors import InputError
from osum_echat.evaluation.reply_emotion import RATE_HZ, Acoustic, Delivery, delivery, read_neutral
from tests.evaluation import spoken

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


def speaker(wave):
    reply = SimpleNamespace(wave=wave, sample_rate_hz=spoken.RATE_HZ)
    return SimpleNamespace(reply=lambda words, task, seed: reply)


def test_the_neutral_is_what_the_voice_reads_plainly_and_one_without_voiced_sound_has_none():
    neutral = read_neutral(speaker(spoken.tone(120.0, 0.8, spoken.RATE_HZ)), "en")
    assert neutral.pitch_hz == pytest.approx(120, rel=0.1)
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, spoken.RATE_HZ).astype("f4"))
    for wave in (noise, None):
        with pytest.raises(InputError, match="take --reply-emotion own-model"):
            read_neutral(speaker(wave), "en")


def tone(pitch_hz: float, seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    harmonics = [np.sin(2 * np.pi * pitch_hz * k * times) / k for k in range(1, 9)]
    return (level * sum(harmonics)).astype(np.float32)


@pytest.mark.parametrize("pitch_hz", [95.0, 140.0, 220.0, 330.0])
def test_pitch_is_found_within_three_percent(pitch_hz):
    assert delivery(tone(pitch_hz), "a").pitch_hz == pytest.approx(pitch_hz, rel=0.03)


def test_pauses_do_not_slow_the_rate_loudness_is_told_and_a_glide_has_a_range():
    speech, pause = tone(120.0), np.zeros(RATE_HZ, np.float32)
    plain = delivery(speech, "hello world")
    paused = delivery(np.concatenate([speech, pause]), "hello world")
    assert paused.letters_per_s == pytest.approx(plain.letters_per_s, rel=0.05)
    loud = delivery(2 * speech, "hello world")
    assert loud.level_db - plain.level_db == pytest.approx(6.02, abs=0.01)
    times = np.arange(RATE_HZ) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 * 2**times) / RATE_HZ      # an octave up in a second
    glide = sum(np.sin(k * phase) / k for k in range(1, 9)).astype(np.float32)
    assert delivery(glide, "a").range_semitones == pytest.approx(9.6, abs=0.5)
    assert delivery(tone(120.0), "a").range_semitones < 0.3
