"""Token to wav at work: streaming beside whole calls, and the published size's cost. Prints tables.

    python -m benchmarks.inference_token2wav [--list FILE [--judge DIR]] [--utterances 100]
                                             [--full]

The first table needs only the tiny model. Without --list, its tokens are random ones; with --judge
(Whisper base, requirements-bench.txt) both sounds of each utterance are heard, too. The second one
(--full) is of random weights in the published sizes, 10 s of speech with a voice of 5 s, in CPU
seconds: a machine drifts, so each row tells the rate of a bare matrix product beside it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.judge import JUDGE_RATE_HZ, Recogniser, word_errors, words
from osum_echat import audio, cli, logs
from osum_echat.errors import InputError
from osum_echat.files import read_jsonl
from osum_echat.metrics import paired_interval
from osum_echat.token2wav import streaming
from osum_echat.token2wav.flow import FlowSettings, VoiceState, frames_for
from osum_echat.token2wav.model import Token2Wav, Token2WavSettings
from osum_echat.token2wav.voice import MELS, SPEAKER_WIDTH, VoicePrompt

SMALL_MODEL = Path(__file__).parents[1] / "pretrained" / "tiny" / "token2wav"
TOKENS_PER_S = 25
LONG_TOKENS = 22 * 50           # more than twenty pieces of the largest size
FULL_TOKENS, PROMPT_TOKENS = 250, 125
FIRST_TOKENS = 25               # one second
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UPSTREAM_FLOW_S, UPSTREAM_VOCODER_S, UPSTREAM_FIRST_S = 49.7, 9.0, 20.3
PRODUCT_SIDE, PRODUCTS = 1024, 8
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What to say: speech tokens, and the words that they say, None where they are random."""

    tokens: list[int]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """One utterance streamed, beside the same one made whole."""

    same_samples: bool
    join_step: float            # largest difference of two samples where pieces meet
    inside_step: float          # largest one anywhere in the whole wave
    distance: float             # L1 of the log-mels that come out of the flow
    streamed: Tensor            # (samples,)
    whole: Tensor


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """CPU seconds of a piece of work, and what it made."""
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def product_rate(dtype: torch.dtype) -> float:
    """Billions of operations in a CPU second, of a bare matrix product; the best of some."""
    left, right = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE).to(dtype)
    best = min(timed(lambda: left @ right)[0] for _ in range(PRODUCTS))
    return 2 * PRODUCT_SIDE**3 / best / 1e9


def to_speak(path: Path | None, count: int, codes: int) -> list[Spoken]:
    """Tokens and words from the lines of a data list, or random tokens of 2 to 6 s."""
    if path is None:
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(50, 150, (count,), generator=generator).tolist()
        return [Spoken(torch.randint(codes, (size,), generator=generator).tolist())
                for size in lengths]  # fmt: skip
    lines = [line for _, line in read_jsonl(path)]
    found = [Spoken(tokens, line.get("txt")) for line in lines
             if (tokens := line.get("extra", line).get("speech_token"))]  # fmt: skip
    if not found or max(max(one.tokens) for one in found) >= codes:
        raise InputError(f"{path}: no speech_token lists of this model's {codes} codes")
    return found[:count]


def streamed_mel(
    model: Token2Wav, tokens: list[int], settings: streaming.StreamSettings, seed: int
) -> Tensor:
    """The mel as the vocoder of a stream gets it: (1, mel, frames)."""
    state = model.flow.voice_state(model.voice)
    drawn = streaming.generators(seed)
    solver = streaming.MelStream(model.flow, state, drawn, settings.fade_frames)
    solved = (solver.solve(piece) for piece in streaming.pieces(tokens, settings))
    return torch.cat([mel[:, :, :new] for mel, new in solved], dim=2)


def whole_mel(model: Token2Wav, tokens: list[int], seed: int) -> Tensor:
    """The mel of a whole call: (1, mel, frames)."""
    voice = model.flow.voice_state(model.voice)
    solver = streaming.MelStream(model.flow, voice, streaming.generators(seed), 0)
    return solver.solve(streaming.Piece(tokens, 0, 0, len(tokens), is_last=True))[0]


def beside(model: Token2Wav, tokens: list[int], settings: streaming.StreamSettings) -> Beside:
    """Make an utterance twice."""
    made = list(model.stream(tokens, seed=1, settings=settings))
    whole, steps = model(tokens, seed=1), torch.cat(made).diff().abs()
    joins = torch.tensor([len(piece) for piece in made]).cumsum(0)[:-1] - 1
    distance = streamed_mel(model, tokens, settings, 1) - whole_mel(model, tokens, 1)
    return Beside(sum(map(len, made)) == len(whole),
                  float(steps[joins].max()) if len(joins) else 0.0, float(whole.diff().abs().max()),
                  float(distance.abs().mean()), torch.cat(made), whole)  # fmt: skip


def piece_costs(model: Token2Wav, settings: streaming.StreamSettings) -> list[float]:
    """CPU seconds of each piece of one long stream."""
    codes = model.flow.settings.codes
    tokens = torch.randint(codes, (LONG_TOKENS,), generator=torch.Generator().manual_seed(2))
    running: Iterator[Tensor] = model.stream(tokens.tolist(), seed=1, settings=settings)
    costs: list[float] = []
    while True:
        start = time.process_time()
        if next(running, None) is None:
            return costs
        costs.append(time.process_time() - start)


def judged_rows(
    judge: Recogniser, texts: Sequence[str | None], found: Sequence[Beside], rate_hz: int
) -> list[tuple[str, str]]:
    """What a recogniser makes of both sounds, and where the difference lies."""
    if None in texts:
        raise InputError("--judge: needs a --list whose lines have txt")
    truths = [words(text or "") for text in texts]

    def errors(wave: Tensor, truth: list[str]) -> int:
        heard = judge(audio.resample(wave, rate_hz, JUDGE_RATE_HZ).numpy())
        return word_errors(truth, words(heard))

    pairs = list(zip(found, truths, strict=True))
    each = [(errors(one.streamed, truth), errors(one.whole, truth))
            for one, truth in logs.progress(pairs, "judge")]  # fmt: skip
    streamed, whole = ([pair[place] for pair in each] for place in (0, 1))
    lengths = [len(truth) for truth in truths]
    total = sum(lengths)
    low, high = (100 * end for end in paired_interval(streamed, whole, lengths))
    less = 100 * (sum(streamed) - sum(whole)) / total
    return [
        ("judge's word errors, streamed", f"{100 * sum(streamed) / total:.2f} %"),
        ("judge's word errors, whole", f"{100 * sum(whole) / total:.2f} %"),
        ("difference in points, 95 % interval, limit 2", f"{less:+.2f} [{low:+.2f}, {high:+.2f}]"),
    ]


def streaming_rows(
    model: Token2Wav, lists: Sequence[Spoken], judge: Recogniser | None
) -> list[tuple[str, str]]:
    """The first table."""
    settings = streaming.StreamSettings()
    found = [beside(model, one.tokens, settings) for one in logs.progress(lists, "streaming")]
    seeds = [whole_mel(model, one.tokens, 1) - whole_mel(model, one.tokens, 2) for one in lists]
    between_seeds = sum(float(one.abs().mean()) for one in seeds) / len(seeds)
    costs = piece_costs(model, settings)
    high = sum(one.join_step > one.inside_step for one in found)
    rows = [
        ("utterances", str(len(found))),
        ("with the samples of the whole", str(sum(one.same_samples for one in found))),
        ("with a join above the whole's largest step", str(high)),
        ("largest step at a join", f"{max(one.join_step for one in found):.3f}"),
        ("largest step in a whole wave, median",
         f"{sorted(one.inside_step for one in found)[len(found) // 2]:.3f}"),
        ("mel distance, stream to whole", f"{sum(o.distance for o in found) / len(found):.3f}"),
        ("mel distance, two seeds", f"{between_seeds:.3f}"),
        ("first piece, CPU s", f"{costs[0]:.3f}"),
        ("3rd and 20th piece, CPU s", f"{costs[2]:.3f} {costs[19]:.3f}"),
        ("20th by 3rd, limit 1.2", f"{costs[19] / costs[2]:.2f}"),
    ]  # fmt: skip
    if judge is not None:
        rows += judged_rows(judge, [one.text for one in lists], found, model.sample_rate_hz)
    return rows


def random_voice(tokens: int) -> VoicePrompt:
    """A voice of the published sizes, so many tokens long."""
    frames = frames_for(tokens, TOKENS_PER_S)
    return VoicePrompt(torch.randint(FlowSettings().codes, (1, tokens)),
                       torch.randn(1, frames, MELS), torch.randn(1, SPEAKER_WIDTH))  # fmt: skip


def full_rows(dtypes: Sequence[str]) -> list[tuple[str, str]]:
    """The second table: random weights of the published sizes, and a voice of 5 s.

    Beside each cost: the rate of the bare product just before.
    """
    torch.manual_seed(0)
    model = Token2Wav(Token2WavSettings(), VoicePrompt.absent()).eval()
    model = model.in_voice(random_voice(PROMPT_TOKENS))
    ids = torch.randint(FlowSettings().codes, (FULL_TOKENS,)).tolist()
    rows: list[tuple[str, str]] = []
    reference: Tensor | None = None
    for dtype in logs.progress(dtypes, "full size"):
        model.dtype = DTYPES[dtype]
        rate = product_rate(model.dtype)
        with torch.autocast("cpu", model.dtype, enabled=dtype != "float32"):
            cost, made = timed(partial(whole_mel, model, ids, 1))
        reference = made if reference is None else reference
        rows.append((
            f"flow, {dtype}",
            f"{told(cost, UPSTREAM_FLOW_S, rate)}, mel distance "
            f"{float((made - reference).abs().mean()):.4f}",
        ))  # fmt: skip
    assert reference is not None
    rate, mel = product_rate(torch.float32), reference
    drawn = torch.Generator()
    cost, _ = timed(lambda: streaming.whole_wave(model.vocoder, mel, drawn.manual_seed(1)))
    rows.append(("vocoder, float32", told(cost, UPSTREAM_VOCODER_S, rate)))
    model.dtype = torch.float32
    return rows + first_rows(model, ids)


def told(cost: float, upstream_s: float, rate: float) -> str:
    """CPU seconds beside upstream's, and the rate of the bare product."""
    return (f"{cost:.1f} CPU s ({cost / upstream_s:.0%} of upstream's {upstream_s}), "
            f"{rate:.0f} GFLOP/s")  # fmt: skip


def first_rows(model: Token2Wav, ids: list[int]) -> list[tuple[str, str]]:
    """What the first second of sound costs."""
    made, prepared = timed(model.prepare_voice)
    pairs = [pair for step in prepared.kept for pair in step]
    size_mb = sum(one.nbytes for pair in pairs for one in pair) / 1e6
    cases: dict[str, VoiceState | None] = {
        "5 s of the voice": None,
        f"5 s prepared (once: {made:.1f} CPU s, {size_mb:.0f} MB)": prepared,
    }
    settings = streaming.StreamSettings(first_tokens=FIRST_TOKENS)
    rows = []
    for name, voice in cases.items():
        rate = product_rate(torch.float32)
        cost, _ = timed(partial(next, model.stream(ids, voice, seed=1, settings=settings)))
        rows.append((f"first second, float32, {name}", told(cost, UPSTREAM_FIRST_S, rate)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", type=Path, default=SMALL_MODEL, help="a token2wav directory")
    parser.add_argument("--list", type=Path, help="a data list with speech_token")
    parser.add_argument("--judge", type=Path, metavar="DIR",
                        help="Whisper base as CTranslate2 files, to hear what the list has as txt")
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--full", action="store_true", help="the published sizes, too: minutes")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"],
                        help="of the full size (bfloat16 pays where the CPU computes in it)")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(argv)
    return cli.run("inference_token2wav", lambda: run(chosen))


def run(chosen: argparse.Namespace) -> None:
    """Measure and print the rows. Raises an OsumError."""
    torch.set_num_threads(chosen.threads)
    with torch.no_grad():
        model = Token2Wav.load(chosen.model)
        lists = to_speak(chosen.list, chosen.utterances, model.flow.settings.codes)
        judge = Recogniser(chosen.judge, chosen.threads) if chosen.judge else None
        rows = streaming_rows(model, lists, judge) if lists else []
        rows += [(f"bare product, {name}, GFLOP/s", f"{product_rate(dtype):.0f}")
                 for name, dtype in DTYPES.items()]  # fmt: skip
        rows += full_rows(chosen.dtypes) if chosen.full else []
    width = max(len(name) for name, _ in rows)
    logs.out("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


if __name__ == "__main__":
    sys.exit(main())
