"""How the small model's voice is understood: units sounded again, and words spoken by the talker.

    python -m benchmarks.small_voice --voice build/export/voice --judge build/parts/whisper_base
        [--parts build/parts] [--rows 40] [--original] [--no-talker] [--curve FILE] [--minutes M]

Sentences of chats that nothing was trained on, in all styles. The judge is Whisper base, greedy.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.judge import JUDGE_RATE_HZ, Recogniser, rating
from common_utils.small_model.speech_rows import Row, RowMaker, UnitFinder
from common_utils.token2wav_recipe import pitch
from osum_echat import audio, cli, logs
from osum_echat.inference.talker import Talker
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


def figures(said: Sequence[Said], judge: Callable[[np.ndarray], str]) -> dict[str, Any]:
    """Word errors with their interval, DNSMOS, and CPU seconds for 10 s of speech."""
    low = [audio.resample(one.wave, SAMPLE_RATE_HZ, JUDGE_RATE_HZ).numpy() for one in said]
    heard = [judge(samples) for samples in low]
    pairs = [normalised_pair(one.row.words, words, "english")
             for one, words in zip(said, heard, strict=True)]  # fmt: skip
    for (wanted, words), one in zip(pairs, said, strict=True):
        if wanted != words:
            logs.logger(__name__).info("%s: %r heard as %r", one.row.style, wanted, words)
    ratings = [rating(samples) for samples in low]
    seconds = sum(one.seconds for one in said)
    return {
        "n": len(said), "wer": rounded(error_rate(pairs).rate),
        "wer_95": [rounded(end) for end in interval(*errors_of_each(pairs))],
        "dnsmos": rounded(sum(ratings) / len(ratings)),
        "dnsmos_95": [rounded(end) for end in interval(ratings)],
        "cpu_s_for_10_s": rounded(10 * sum(one.cpu_s for one in said) / seconds),
    }  # fmt: skip


def manners(said: Sequence[Said]) -> dict[str, dict[str, float]]:
    """Median pitch (Hz), letters a second and level (dB) of each style."""
    found: dict[str, dict[str, float]] = {}
    for style in sorted({one.row.style for one in said}):
        own = [one for one in said if one.row.style == style]
        hertz = np.concatenate([pitch.track(one.wave.numpy(), SAMPLE_RATE_HZ, 256) for one in own])
        power = torch.cat([one.wave for one in own]).square().mean()
        found[style] = {
            "pitch_hz": rounded(float(np.median(hertz[hertz > 0]))),
            "letters_s": rounded(
                sum(len(one.row.words) for one in own) / sum(one.seconds for one in own)
            ),
            "level_db": rounded(float(10 * power.log10())),
        }
    return found


def first_piece_ms(rows: Iterable[Row], talker: Talker, voice: Token2Wav) -> float:
    """CPU milliseconds from the words to the first sound, the median."""
    taken = []
    for row in rows:
        speech, start = talker.begin(row.style), time.process_time()
        codes = chain(speech.push(f"{row.words} "), speech.finish())
        next(voice.stream(codes, voice.styles.get(row.style), seed=0), None)
        taken.append(1000 * (time.process_time() - start))
    return rounded(float(np.median(taken)))


def rounded(value: float | None) -> float:
    return round(float(value or 0.0), PLACES)


def measure(chosen: argparse.Namespace) -> None:
    """Print the figures as JSON, and add them to the curve."""
    torch.set_num_threads(1)
    voice = Token2Wav.load(chosen.voice / "token2wav")
    rows = list(islice(RowMaker(chosen.parts, held_out=True).rows(), chosen.rows))
    judge, found = Recogniser(chosen.judge, 1, greedy=True), dict[str, Any]()
    if chosen.original:
        waves = [Said(row, torch.from_numpy(row.wave)) for row in rows]
        found["original"] = figures(waves, judge)
    find = UnitFinder(chosen.voice / "token2wav" / "units.safetensors", chosen.judge)
    again = sounded(rows, lambda row: find(row.wave), voice)
    found |= {"resynthesis": figures(again, judge), "styles": manners(again)}
    if chosen.talker:
        codes = voice.settings.flow.codes
        talker = Talker.load(chosen.voice / "talker", codes, torch.device("cpu"))
        spoken = sounded(rows, lambda row: talker.say(row.words, row.style), voice)
        found["talker"] = figures(spoken, judge)
        found["first_piece_ms"] = first_piece_ms(rows[:10], talker, voice)
    if chosen.minutes is not None:
        found["minutes"] = chosen.minutes
    logs.out(json.dumps(found, indent=2))
    if chosen.curve is not None:
        with chosen.curve.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--voice", type=Path, required=True, metavar="DIR", help="what export_voice wrote")
    add("--judge", type=Path, required=True, metavar="DIR", help="Whisper base, which the units "
        "are found with too: faster-whisper's files and model.safetensors")
    add("--parts", type=Path, default=Path("build/parts"), metavar="DIR")
    add("--rows", type=int, default=40)
    add("--original", action="store_true", help="the recipe's own sound as well")
    add("--talker", action=argparse.BooleanOptionalAction, default=True)
    add("--curve", type=Path, metavar="FILE", help="add the figures as a line of JSON")
    add("--minutes", type=float, help="of training so far, noted in the curve")
    chosen = parser.parse_args(argv)
    return cli.run("small_voice", lambda: measure(chosen))


if __name__ == "__main__":
    sys.exit(main())
