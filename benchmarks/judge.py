"""Judges of speech: what a recogniser hears in it, and how it is rated.

The recogniser (Whisper base) and the rating (DNSMOS P.808) come from requirements-bench.txt. Words
are compared as evaluation does it, by Whisper's normaliser.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from osum_echat import audio, metrics
from osum_echat.errors import InputError
from osum_echat.evaluation.tts import load_whisper

JUDGE_RATE_HZ = audio.SAMPLE_RATE_HZ


def words(text: str) -> list[str]:
    """The words of an English text that count: no tags, marks or case; spellings made one."""
    return metrics.normalise(text, "english").split()


def word_errors(truth: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of words to insert, delete or change to turn one list into the other."""
    return metrics.error_rate([(" ".join(truth), " ".join(heard))]).errors


def error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Word errors in percent over (truth, heard) pairs of texts."""
    plain = [metrics.normalised_pair(*pair, "english") for pair in pairs]
    return 100 * metrics.error_rate(plain).rate


class Recogniser:
    """Whisper in the CTranslate2 layout. Raises InputError for a folder that is none."""

    def __init__(self, directory: Path, threads: int = 2, greedy: bool = False) -> None:
        self._model = load_whisper(directory, "--judge", device="cpu", cpu_threads=threads)
        self._search = {"beam_size": 1, "temperature": 0.0} if greedy else {}

    def __call__(self, samples: np.ndarray) -> str:
        """samples: (samples,) at 16 kHz. The text heard."""
        segments, _ = self._model.transcribe(
            samples.astype(np.float32), language="en", without_timestamps=True,
            condition_on_previous_text=False, **self._search,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)


def rating(samples: np.ndarray) -> float:
    """DNSMOS P.808, from 1 to 5. samples: (samples,) at 16 kHz."""
    try:
        from speechmos import dnsmos
    except ImportError as error:
        raise InputError(f"--judge: {error}; pip install -r requirements-bench.txt") from error
    return float(dnsmos.run(np.clip(samples, -1, 1), JUDGE_RATE_HZ)["p808_mos"])
