"""How good the tiny model is on a fresh test split of the tiny world: prints a table of figures.

    python -m common_utils.tiny_world.make --split test --seed 9 --size 240 --out build/fresh
    python -m benchmarks.tiny_world --data build/fresh/test --judge build/assets/whisper_base

Parts that listen to speech need --judge (Whisper base) and requirements-bench.txt.
"""

import argparse
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.judge import JUDGE_RATE_HZ, Recogniser, error_rate, rating
from common_utils.tiny_world.world import World, load_world, normalise
from osum_echat import audio, cli, logs
from osum_echat.errors import InputError
from osum_echat.evaluation.echat_eval import WORLD_FILE
from osum_echat.evaluation.reply_emotion import Delivery, delivery, middle
from osum_echat.evaluation.runner import read_objects
from osum_echat.files import write_json
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import LABEL_FIELDS, Reply
from osum_echat.paths import TINY
from osum_echat.records import Turn, Utterance
from osum_echat.token2wav.voice import SpeechTokenizer

Exchange = dict[str, Any]
FULL_TAG = "<TRANSCRIBE> <CAPTION> <AGE> <GENDER> <EMOTION>"
LEAST_RIGHT = {"gender": 90, "age": 85, "emotion": 75, "event": 90}
QUESTION_S = 3.0
LATENCY_RUNS = 5
# Against CALM: how each style's pitch, rate and level must differ (1 higher, -1 lower, 0 either).
STYLE_SIGNS = {"CHEERFUL": (1, 1, 1), "SOFT": (-1, -1, -1), "BRISK": (0, 1, 0)}
ASPECTS = ("pitch", "rate", "level")


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
    """The model, the exchanges to try it on, and the judge of speech, where there is one."""

    def __init__(
        self, assistant: EChat, root: Path, limit: int, spoken: int, judge: Recogniser | None
    ) -> None:
        self.assistant, self.root, self.limit, self.spoken = assistant, root, limit, spoken
        self.world: World = load_world()
        self.judge = judge
        place = root / WORLD_FILE
        if not place.is_file():
            raise InputError(f"--data {place}: not there; make a split with "
                             "python -m common_utils.tiny_world.make --help")  # fmt: skip
        self.exchanges: list[Exchange] = read_objects(place, lambda raw, _: raw)[0]

    def of_kind(self, *kinds: str) -> Iterator[Exchange]:
        """The first exchanges of these kinds, as many as the limit lets through."""
        fitting = [one for one in self.exchanges if one["kind"] in kinds][: self.limit]
        yield from logs.progress(fitting, "/".join(kinds), len(fitting))

    def to_speak(self) -> Iterator[Exchange]:
        """Single turns whose speech is judged: fewer, since that is slow."""
        fitting = [one for one in self.exchanges if one["kind"] == "single"][: self.spoken]
        yield from logs.progress(fitting, "speech", len(fitting))

    @cached_property
    def codec(self) -> SpeechTokenizer:
        return SpeechTokenizer(self.assistant.directory / "token2wav" / "speech_tokenizer.onnx")

    def wav(self, exchange: Exchange) -> Path:
        return self.root / str(exchange["wav"])

    def hear(self, samples: np.ndarray) -> str:
        if self.judge is None:
            raise InputError("this part listens to speech: give --judge DIR")
        return self.judge(samples)


def _share(name: str, right: Sequence[bool], least: float | None = None) -> Figure:
    return Figure(name, 100.0 * sum(right) / max(1, len(right)), "%", len(right), least)


def understanding(bench: Bench) -> Iterator[Figure]:
    """Words and labels, by the full understanding task."""
    pairs: list[tuple[str, str]] = []
    right: dict[str, list[bool]] = defaultdict(list)
    for one in bench.of_kind("single"):
        reply = bench.assistant.reply(bench.wav(one), task=FULL_TAG)
        pairs.append((one["user_text"], reply.heard or ""))
        for field in LABEL_FIELDS:
            right[field].append(getattr(reply.labels, field) == one["labels"][field])
    yield Figure("ASR word errors", error_rate(pairs), "%", len(pairs), most=20)
    for field, least in LEAST_RIGHT.items():
        yield _share(f"{field} right", right[field], least)


def asr(bench: Bench) -> Iterator[Figure]:
    """Words alone, by the task that asks for nothing else."""
    pairs = [
        (one["user_text"], bench.assistant.reply(bench.wav(one), task="asr").heard or "")
        for one in bench.of_kind("single")
    ]
    yield Figure("ASR word errors, plain task", error_rate(pairs), "%", len(pairs), most=20)


def _answered(
    bench: Bench, kind: str, task: str, thinking: str | None = None
) -> Iterator[tuple[Exchange, Reply, bool]]:
    """The reply to each exchange of a kind, in text alone, and whether it is right.

    Of written questions the words alone decide which reply is right.
    """
    for one in bench.of_kind(kind):
        source = one["user_text"] if task == "t2t" else bench.wav(one)
        reply = bench.assistant.reply(source, task=task, thinking=thinking, speak=False)
        right = bench.world.right_text_replies if task == "t2t" else bench.world.right_replies
        yield one, reply, normalise(reply.text) in right(one)


def _right_replies(task: str, thinking: str | None, least: float | None) -> "Part":
    """A part that counts right replies to single turns."""
    name = f"{task}, {thinking}" if thinking else task

    def part(bench: Bench) -> Iterator[Figure]:
        found = list(_answered(bench, "single", task, thinking))
        yield _share(f"{name}: right reply", [right for *_, right in found], least)
        if thinking == "label":
            yield _share(f"{name}: all four labels of the thought right", [
                all(getattr(reply.labels, field) == one["labels"][field] for field in LABEL_FIELDS)
                for one, reply, _ in found
            ])  # fmt: skip

    return part


def dialogues(bench: Bench) -> Iterator[Figure]:
    """Last turns that cannot be answered without the ones before."""
    right: dict[int, list[bool]] = defaultdict(list)
    for one in bench.of_kind("dialogue"):
        history = tuple(
            Turn(bench.root / turn["wav"], turn["user_text"], turn["reply_text"],
                 tuple(bench.codec(audio.load(bench.root / turn["reply_wav"]))))
            for turn in one["turns"]
        )  # fmt: skip
        question = Utterance(one["key"], "s2s", Turn(audio=bench.wav(one)), history=history)
        reply = bench.assistant.reply(question, speak=False)
        is_right = normalise(reply.text) in bench.world.right_replies(one)
        right[len(history) + 1].append(is_right)
    for turns, rights in sorted(right.items()):
        yield _share(f"dialogue: right reply in turn {turns}", rights, 50)


def identity(bench: Bench) -> Iterator[Figure]:
    """Who are you, who made you: spoken and written."""
    for task in ("s2s", "s2t", "t2t"):
        rights = [right for *_, right in _answered(bench, "identity", task)]
        if rights:
            yield _share(f"identity by {task}: right reply", rights, 90)


def synthesis(bench: Bench) -> Iterator[Figure]:
    """Replies read out by the tts task, each in its own style."""
    spoken = []
    for one in bench.to_speak():
        text = one["reply_text"]
        reply = bench.assistant.reply(f"<{one['reply_style']}>{text}", task="tts")
        spoken.append((one["reply_style"], text, _for_judge(reply.wave, reply.sample_rate_hz)))
    yield from _judged(bench, "tts", spoken)


def speech(bench: Bench) -> Iterator[Figure]:
    """Whole spoken replies: does the speech say the text, in the style that the labels ask for."""
    spoken = []
    for one in bench.to_speak():
        reply = bench.assistant.reply(bench.wav(one), task="s2s_think")
        style = reply.labels.style or one["reply_style"]
        spoken.append((style, reply.text, _for_judge(reply.wave, reply.sample_rate_hz)))
    yield from _judged(bench, "s2s_think", spoken)


def resynthesis(bench: Bench) -> Iterator[Figure]:
    """The reply voice itself, and the same through speech tokens and back."""
    voice = bench.assistant.voice
    assert voice is not None
    original, again, ratings = [], [], []
    for one in bench.to_speak():
        samples = audio.load(bench.root / one["reply_wav"])
        back = _for_judge(voice(list(bench.codec(samples)), seed=0), voice.sample_rate_hz)
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
    yield from _contrasts(name, styles)


def _contrasts(name: str, styles: dict[str, list[Delivery]]) -> Iterator[Figure]:
    """How far each style lies from CALM in pitch, rate and level."""
    if "CALM" not in styles:
        return
    calm = middle(styles["CALM"])
    for style, signs in STYLE_SIGNS.items():
        if style not in styles:
            continue
        own = middle(styles[style])
        shifts = (
            100 * (own.pitch_hz / calm.pitch_hz - 1),
            100 * (own.letters_per_s / calm.letters_per_s - 1), own.level_db - calm.level_db,
        )  # fmt: skip
        for aspect, shift, unit, sign in zip(ASPECTS, shifts, ("%", "%", "dB"), signs, strict=True):
            yield Figure(
                f"{name}: {aspect} of {style} against CALM", shift, unit, len(styles[style]),
                least=0 if sign > 0 else None, most=0 if sign < 0 else None,
            )  # fmt: skip


def latency(bench: Bench) -> Iterator[Figure]:
    """One exchange, over and over: the question nearest to three seconds."""
    singles = [one for one in bench.exchanges if one["kind"] == "single"]
    lengths = [len(audio.load(bench.wav(one))) / audio.SAMPLE_RATE_HZ for one in singles[:60]]
    best = min(range(len(lengths)), key=lambda number: abs(lengths[number] - QUESTION_S))
    question = bench.wav(singles[best])
    bench.assistant.reply(question, task="s2s_think")
    cpu_s = time.process_time()
    runs = [bench.assistant.reply(question, task="s2s_think") for _ in range(LATENCY_RUNS)]
    cpu_s = (time.process_time() - cpu_s) / LATENCY_RUNS
    yield Figure("latency: question", lengths[best], "s", 1)
    for field in ("encode_s", "prefill_s", "first_text_s", "first_speech_token_s", "first_audio_s"):
        values = [value for run in runs if (value := getattr(run.timings, field)) is not None]
        if values:
            words = field.removesuffix("_s").replace("_", " ")
            most = 3.0 if field == "first_audio_s" else None
            middle = statistics.median(values)
            yield Figure(f"latency: {words}", middle, "s", len(values), most=most)
    ratios = [run.timings.total_s / run.audio_out_s for run in runs if run.audio_out_s]
    if ratios:
        yield Figure("latency: whole reply by its length", statistics.median(ratios), "x",
                     len(ratios), most=2.0)
    yield Figure("latency: CPU of one exchange", cpu_s, "s", LATENCY_RUNS)
    yield Figure("load", bench.assistant.load_s, "s", 1)


Part = Callable[[Bench], Iterator[Figure]]
PARTS: dict[str, Part] = {
    "understanding": understanding,
    "asr": asr,
    "s2s_think_label": _right_replies("s2s_think", "label", 60),
    "s2s_think_natural": _right_replies("s2s_think", "natural", 55),
    "s2s": _right_replies("s2s", None, None),
    "s2t": _right_replies("s2t", None, None),
    "s2t_think_label": _right_replies("s2t_think", "label", 55),
    "s2t_think_natural": _right_replies("s2t_think", "natural", 50),
    "t2t": _right_replies("t2t", None, 80),
    "dialogue": dialogues,
    "identity": identity,
    "latency": latency,
    "tts": synthesis,
    "speech": speech,
    "resynthesis": resynthesis,
}
JUDGED = ("tts", "speech", "resynthesis")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right."""
    arguments = _arguments(argv)
    return cli.run("tiny_world", lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Print the figures of the parts that are asked for. Raises an OsumError."""
    start, cpu_s = time.monotonic(), time.process_time()
    judge = Recogniser(arguments.judge) if arguments.judge else None
    names = arguments.only or [name for name in PARTS if judge or name not in JUDGED]
    assistant = EChat.load(arguments.model, device=arguments.device)
    bench = Bench(assistant, arguments.data, arguments.limit, arguments.spoken, judge)
    figures = []
    for figure in chain.from_iterable(PARTS[name](bench) for name in names):
        figures.append(figure)
        logs.out(row(figure))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = [
        Figure("all: time", time.monotonic() - start, "s", 1),
        Figure("all: CPU", time.process_time() - cpu_s, "s", 1),
        Figure("all: peak memory", peak_mb, "MB", 1),
    ]
    logs.out("\n".join(map(row, whole)))
    if arguments.json:
        write_json(arguments.json, [asdict(one) for one in (*figures, *whole)])


def row(figure: Figure) -> str:
    """A figure as a line of the table."""
    value = f"{figure.value:.2f} {figure.unit}".strip()
    return (f"{figure.name:<48} {value:>12}  {figure.wanted:<8} {figure.verdict:<6} "
            f"n={figure.count}").rstrip()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser(__doc__)
    add = made.add_argument
    add("--data", type=Path, required=True, help="a split's folder, with exchanges.jsonl")
    add("--model", type=Path, default=TINY)
    add("--limit", type=int, default=200, help="exchanges a part (default 200)")
    add("--spoken", type=int, default=50, help="of those whose speech is judged (default 50)")
    add("--only", nargs="+", choices=tuple(PARTS), metavar="PART", help=" ".join(PARTS))
    add("--judge", type=Path, metavar="DIR", help="Whisper base as CTranslate2 files")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    add("--device", default="auto")
    return made.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
