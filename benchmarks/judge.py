"""Judges of speech: what a recogniser hears in it, and how it is rated.

The recogniser (Whisper base) and the rating (DNSMOS P.808) come from requirements-bench.txt.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osum_echat.errors import InputError

JUDGE_RATE_HZ = 16_000

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SPELLINGS = {
    "colour": "color", "colours": "colors", "favourite": "favorite", "favourites": "favorites",
    "neighbour": "neighbor", "neighbours": "neighbors", "neighbourhood": "neighborhood",
    "honour": "honor", "flavour": "flavor", "humour": "humor", "grey": "gray", "mum": "mom",
    "mums": "moms", "mummy": "mommy", "centre": "center", "theatre": "theater", "metre": "meter",
    "metres": "meters", "litre": "liter", "practise": "practice", "practising": "practicing",
    "realise": "realize", "realised": "realized", "organise": "organize", "organised": "organized",
    "recognise": "recognize", "apologise": "apologize", "travelling": "traveling",
    "travelled": "traveled", "cancelled": "canceled", "cosy": "cozy", "pyjamas": "pajamas",
    "jewellery": "jewelry", "programme": "program", "tyre": "tire", "cheque": "check",
    "storey": "story", "doughnut": "donut", "okay": "ok", "goodbye": "good bye", "oh": "o",
    "mr": "mister", "mrs": "missus", "dr": "doctor",
}  # fmt: skip


def number_words(number: int) -> str:
    """A number below a million as it is read out; years and the like in one piece."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        rest = number % 10
        return TENS[number // 10] + (f" {UNITS[rest]}" if rest else "")
    if number < 1000:
        rest = number % 100
        return f"{UNITS[number // 100]} hundred" + (f" {number_words(rest)}" if rest else "")
    rest = number % 1000
    return f"{number_words(number // 1000)} thousand" + (f" {number_words(rest)}" if rest else "")


def words(text: str) -> list[str]:
    """The words of a text that count: no tags, marks or case; numbers and spellings made one."""
    text = re.sub(r"<[^<>]*>", " ", text.lower().replace("’", "'"))
    text = re.sub(r"(\d+):00\b", r"\1 o'clock", text)
    text = re.sub(r"(\d),(\d{3})\b", r"\1\2", text)
    text = re.sub(r"\d{1,6}", lambda match: f" {number_words(int(match[0]))} ", text)
    found = re.findall(r"[a-z]+(?:'[a-z]+)?", text)
    return " ".join(SPELLINGS.get(word, word) for word in found).split()


def word_errors(truth: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of words to insert, delete or change to turn one list into the other."""
    row = list(range(len(heard) + 1))
    for index, wanted in enumerate(truth, start=1):
        diagonal, row[0] = row[0], index
        for column, word in enumerate(heard, start=1):
            diagonal, row[column] = row[column], min(
                row[column] + 1, row[column - 1] + 1, diagonal + (wanted != word)
            )
    return row[-1]


def error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Word errors in percent over (truth, heard) pairs of texts."""
    errors = sum(word_errors(words(truth), words(heard)) for truth, heard in pairs)
    return 100.0 * errors / max(1, sum(len(words(truth)) for truth, _ in pairs))


class Recogniser:
    """Whisper in the CTranslate2 layout, by faster-whisper.

    directory: holds model.bin, config.json, tokenizer.json and vocabulary.txt.
    """

    def __init__(self, directory: Path, threads: int = 2) -> None:
        for name in ("model.bin", "tokenizer.json"):
            if not (directory / name).is_file():
                raise InputError(
                    f"--judge {directory}: no {name}; make it with "
                    "python -m common_utils.tiny_world.assets"
                )
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise InputError(
                f"--judge: {error}; pip install -r requirements-bench.txt"
            ) from error
        self._model: Any = WhisperModel(
            str(directory), device="cpu", compute_type="float32", cpu_threads=threads
        )

    def __call__(self, samples: np.ndarray) -> str:
        """samples: (samples,) at 16 kHz. The text heard."""
        segments, _ = self._model.transcribe(
            samples.astype(np.float32), language="en", without_timestamps=True,
            condition_on_previous_text=False,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)


def rating(samples: np.ndarray) -> float:
    """DNSMOS P.808, from 1 to 5. samples: (samples,) at 16 kHz."""
    try:
        from speechmos import dnsmos
    except ImportError as error:
        raise InputError(f"--judge: {error}; pip install -r requirements-bench.txt") from error
    return float(dnsmos.run(np.clip(samples, -1, 1), JUDGE_RATE_HZ)["p808_mos"])
