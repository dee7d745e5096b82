"""How the small model's voice is understood, rated and paced, by what is sounded of rows.

The judge is Whisper base, greedy.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.judge import JUDGE_RATE_HZ, rating
from common_utils.small_model.voice import Row
from osum_echat import audio, logs
from osum_echat.evaluation.reply_emotion import delivery, middle
from osum_echat.metrics import error_rate, errors_of_each, interval, normalised_pair
from osum_echat.token2wav.model import Token2Wav
from osum_echat.token2wav.voice import SAMPLE_RATE_HZ

PLACES = 4                              # of figures
Codes = Callable[[Row], list[int]]


@dataclass(frozen=True, slots=True)
class Said:
    """A row sounded. wave: (samples,) at 22.05 kHz; cpu_s: of making it from its codes."""

    row: Row
    wave: Tensor
    cpu_s: float = 0.0

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE_HZ


def sounded(rows: Iterable[Row], codes: Codes, voice: Token2Wav) -> list[Said]:
    """The codes of rows made to sound, in the voice of each row's style."""
    made = []
    for row in rows:
        own, start = codes(row), time.process_time()
        wave = voice(own, voice.styles.get(row.style), seed=0)
        made.append(Said(row, wave, time.process_time() - start))
    return made


def for_judge(said: Said) -> np.ndarray:
    """Its samples at 16 kHz: (samples,)."""
    return audio.resample(said.wave, SAMPLE_RATE_HZ, JUDGE_RATE_HZ).numpy()


def figures(said: Sequence[Said], judge: Callable[[np.ndarray], str]) -> dict[str, Any]:
    """Word errors with their interval, DNSMOS, and CPU seconds for 10 s of speech."""
    low = [for_judge(one) for one in said]
    heard = [judge(samples) for samples in low]
    pairs = [normalised_pair(one.row.words, words, "english")
             for one, words in zip(said, heard, strict=True)]  # fmt: skip
    for (wanted, words), one in zip(pairs, said, strict=True):
        if wanted != words:
            logs.logger(__name__).info("%s: %r heard as %r", one.row.style, wanted, words)
    ratings = [rating(samples) for samples in low]
    seconds = sum(one.seconds for one in said)
    return {"n": len(said), "wer": rounded(error_rate(pairs).rate),
            "wer_95": [rounded(end) for end in interval(*errors_of_each(pairs))],
            "dnsmos": rounded(sum(ratings) / len(ratings)),
            "dnsmos_95": [rounded(end) for end in interval(ratings)],
            "cpu_s_for_10_s": rounded(10 * sum(one.cpu_s for one in said) / seconds)}  # fmt: skip


def manners(said: Sequence[Said]) -> dict[str, dict[str, float]]:
    """Median pitch (Hz), letters a second and level (dB) of each style."""
    found = {}
    for style in sorted({one.row.style for one in said}):
        own = middle([delivery(for_judge(one), one.row.words) for one in said
                      if one.row.style == style])  # fmt: skip
        found[style] = {"pitch_hz": rounded(own.pitch_hz), "letters_s": rounded(own.letters_per_s),
                        "level_db": rounded(own.level_db)}  # fmt: skip
    return found


def rounded(value: float | None) -> float:
    return round(float(value or 0.0), PLACES)
