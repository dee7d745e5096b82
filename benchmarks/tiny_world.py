"""How well the tiny model speaks, on a fresh test split of the tiny world: prints a table.

    python -m common_utils.tiny_world.make --split test --seed 9 --size 240 --out build/fresh
    python -m benchmarks.tiny_world --data build/fresh/test --judge build/assets/whisper_base

Listens by Whisper base (--judge) and rates by requirements-bench.txt. What is understood, which
replies are right, how texts are read out and how soon replies come is told by suites:
understanding, tiny_world, tts, latency.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.judge import JUDGE_RATE_HZ, Recogniser, error_rate, rating
from osum_echat import audio, cli, logs
from osum_echat.errors import InputError
from osum_echat.evaluation.echat_eval import WORLD_FILE
from osum_echat.evaluation.reply_emotion import Delivery, delivery, middle
from osum_echat.evaluation.runner import read_objects
from osum_echat.files import write_json
from osum_echat.inference.assistant import EChat
from osum_echat.paths import TINY
from osum_echat.token2wav.voice import SpeechTokenizer

# Against CALM: how each style's pitch, rate and level must differ (1 higher, -1 lower, 0 either).
STYLE_SIGNS = {"CHEERFUL": (1, 1, 1), "SOFT": (-1, -1, -1), "BRISK": (0, 1, 0)}
ASPECTS = {"pitch": "%", "rate": "%", "level": "dB"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. least, most: what it must reach, None where nothing is asked."""

    name: str
    value: float
    unit: str
    count: int
    least: float | None = None
    most: float | None = None

    @property
    def verdict(self) -> str:
        if self.least is None and self.most is None:
            return ""
        high_enough = self.least is None or self.value >= self.least
        return "ok" if high_enough and (self.most is None or self.value <= self.most) else "SHORT"

    @property
    def wanted(self) -> str:
        signs = ((">=", self.least), ("<=", self.most))
        return " ".join(f"{sign} {limit:g}" for sign, limit in signs if limit is not None)


class Bench:
    """The model, what hears it, and the single turns whose speech is judged."""

    def __init__(self, model: str, root: Path, spoken: int, judge: Path, device: str) -> None:
        place = root / WORLD_FILE
        if not place.is_file():
            raise InputError(f"--data {place}: not there; make a split with "
                             "python -m common_utils.tiny_world.make --help")  # fmt: skip
        self.root, self.hear = root, Recogniser(judge)
        self.assistant = EChat.load(model, device=device)
        exchanges: list[dict[str, Any]] = read_objects(place, lambda raw, _: raw)[0]
        self.turns = [one for one in exchanges if one["kind"] == "single"][:spoken]


def speech(bench: Bench) -> Iterator[Figure]:
    """Whole spoken replies: does the speech say the text, in the style that the labels ask for."""
    spoken = []
    for one in logs.progress(bench.turns, "speech"):
        reply = bench.assistant.reply(bench.root / one["wav"], task="s2s_think")
        style = reply.labels.style or one["reply_style"]
        spoken.append((style, reply.text, _for_judge(reply.wave, reply.sample_rate_hz)))
    yield from _judged(bench, "s2s_think", spoken)


def resynthesis(bench: Bench) -> Iterator[Figure]:
    """The reply voice itself, and the same through speech tokens and back."""
    voice = bench.assistant.voice
    assert voice is not None
    codec = SpeechTokenizer(bench.assistant.directory / "token2wav" / "speech_tokenizer.onnx")
    original, again, ratings = [], [], []
    for one in logs.progress(bench.turns, "resynthesis"):
        samples = audio.load(bench.root / one["reply_wav"])
        back = _for_judge(voice(list(codec(samples)), seed=0), voice.sample_rate_hz)
        original.append((one["reply_text"], bench.hear(samples.numpy())))
        again.append((one["reply_text"], bench.hear(back)))
        ratings.append(rating(back))
    yield Figure("reply voice: judge's word errors", error_rate(original), "%", len(original))
    yield Figure("resynthesis: judge's word errors", error_rate(again), "%", len(again), most=12)
    yield Figure("resynthesis: DNSMOS P.808", statistics.mean(ratings), "", len(ratings))


def _for_judge(wave: Tensor | None, rate_hz: int | None) -> np.ndarray:
    """A reply's wave as the judges take it; a moment of silence for no speech."""
    if wave is None or rate_hz is None:
        return np.zeros(JUDGE_RATE_HZ // 2, np.float32)
    return audio.resample(wave.float().cpu(), rate_hz, JUDGE_RATE_HZ).numpy()


def _judged(bench: Bench, name: str, spoken: list[tuple[str, str, np.ndarray]]) -> Iterator[Figure]:
    """Word errors, rating, and each style's delivery, of (style, text, samples at 16 kHz)."""
    pairs = [(text, bench.hear(samples)) for _, text, samples in spoken]
    yield Figure(f"{name}: judge's word errors", error_rate(pairs), "%", len(pairs), most=25)
    ratings = [rating(samples) for _, _, samples in spoken]
    yield Figure(f"{name}: DNSMOS P.808", statistics.mean(ratings), "", len(ratings), 3.3)
    styles: dict[str, list[Delivery]] = defaultdict(list)
    for style, text, samples in spoken:
        styles[style].append(delivery(samples, text))
    if "CALM" in styles:
        yield from _contrasts(name, styles)


def _contrasts(name: str, styles: dict[str, list[Delivery]]) -> Iterator[Figure]:
    """How far each style lies from CALM in pitch, rate and level."""
    calm = middle(styles["CALM"])
    for style in (one for one in STYLE_SIGNS if one in styles):
        own = middle(styles[style])
        shifts = (100 * (own.pitch_hz / calm.pitch_hz - 1),
                  100 * (own.letters_per_s / calm.letters_per_s - 1),
                  own.level_db - calm.level_db)  # fmt: skip
        for aspect, shift, sign in zip(ASPECTS, shifts, STYLE_SIGNS[style], strict=True):
            least, most = 0 if sign > 0 else None, 0 if sign < 0 else None
            yield Figure(f"{name}: {aspect} of {style} against CALM", shift, ASPECTS[aspect],
                         len(styles[style]), least, most)  # fmt: skip


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "speech": speech, "resynthesis": resynthesis,
}


def row(figure: Figure) -> str:
    """A figure as a line of the table."""
    value = f"{figure.value:.2f} {figure.unit}".strip()
    return (f"{figure.name:<48} {value:>12}  {figure.wanted:<8} {figure.verdict:<6} "
            f"n={figure.count}").rstrip()


def measure(chosen: argparse.Namespace) -> None:
    """Print the figures of the parts that are asked for. Raises an OsumError."""
    bench = Bench(chosen.model, chosen.data, chosen.spoken, chosen.judge, chosen.device)
    figures = []
    for figure in chain.from_iterable(PARTS[name](bench) for name in chosen.only):
        figures.append(figure)
        logs.out(row(figure))
    if chosen.json:
        write_json(chosen.json, [asdict(one) for one in figures])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a split's folder, with exchanges.jsonl")
    add("--judge", type=Path, required=True, metavar="DIR", help="Whisper base, CTranslate2 files")
    add("--model", default=str(TINY))
    add("--spoken", type=int, default=50, help="turns whose speech is judged (default 50)")
    add("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART",
        help=" ".join(PARTS))
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    add("--device", default="auto")
    chosen = parser.parse_args(argv)
    return cli.run("tiny_world", lambda: measure(chosen))


if __name__ == "__main__":
    sys.exit(main())
