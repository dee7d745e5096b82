"""Claims about the voice's figures: words, ratings and styles are those of the sound."""

import numpy as np
import pytest
import torch

from benchmarks import small_voice
from benchmarks.small_voice import Said, figures, manners
from common_utils.small_model.speech_rows import Row


def buzz(words: str, style: str, hertz: float, gain: float, seconds: float = 1.0) -> Said:
    times = np.arange(round(seconds * 22_050)) / 22_050
    wave = sum(np.sin(2 * np.pi * hertz * k * times) / k for k in range(1, 8)) * gain
    sound = torch.from_numpy(np.asarray(wave, np.float32))
    return Said(Row("k", style, words, (), np.zeros(1, np.float32)), sound, cpu_s=0.2)


def test_figures_count_words_and_cpu_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_voice, "rating", lambda samples: 4.0)
    heard = iter(["Good, dog.", "good cat"])
    said = [buzz("Good dog.", "CALM", 150, 0.1), buzz("Good dog.", "CALM", 150, 0.1, 3.0)]
    found = figures(said, lambda samples: next(heard))
    assert (found["n"], found["wer"], found["dnsmos"]) == (2, 0.25, 4.0)
    assert found["cpu_s_for_10_s"] == pytest.approx(1.0)
    assert found["wer_95"] == [0.0, 0.5]


def test_styles_differ_in_pitch_rate_and_level():
    said = [buzz("ab", "CALM", 150, 0.1), buzz("abcd", "BRISK", 200, 0.2)]
    found = manners(said)
    assert found["CALM"]["pitch_hz"] == pytest.approx(150, abs=3)
    assert found["BRISK"]["pitch_hz"] == pytest.approx(200, abs=3)
    assert found["BRISK"]["letters_s"] == 2 * found["CALM"]["letters_s"]
    assert found["BRISK"]["level_db"] - found["CALM"]["level_db"] == pytest.approx(6.02, abs=0.05)
