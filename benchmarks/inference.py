"""How fast replies are decoded, one by one and side by side, and how long clips are heard.

    python -m benchmarks.inference [--part loop|batch|long|busy] [--model DIR] [--rounds 5]

loop: the decoding loop on a random LLM of 2 layers of width 64 (the size of the parity fixture, on
which upstream's code makes 220 to 295 tokens a CPU second: 8000 cache slots, greedy, no rules),
one thread, CPU seconds. batch: the tiny model on 8 of its sample questions, wall and CPU seconds,
mel to last token, no sound. long: what windows change, against a clip heard at once. Rounds take
turns and the best of each case counts, since the machine has other work. busy: first audio by
itself and beside two busy processes (at most 4 times as long).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from osum_echat import audio
from osum_echat.generation import decoder
from osum_echat.generation.kv_cache import CachedLLM
from osum_echat.generation.sampling import PRESETS, Rule, Sampling
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import AudioPiece, Timer
from osum_echat.inference.request import Options, make_request, prepare
from osum_echat.logs import out, setup
from osum_echat.models.echat import EChatModel, EChatSettings, windows
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.paths import TINY
from osum_echat.records import Turn, Utterance
from osum_echat.tasks import TASKS
from osum_echat.vocab import Vocab
from tests.letters import Letters
from tests.parity.upstream_rules import NoLongRuns, WindowLimit

UPSTREAM_TOKENS_PER_S = "220 to 295"
PROMPT_TOKENS, TOKENS = 45, 500
ROWS = 8
BUSY = 2                        # other processes
Ids = tuple[list[int], list[int]]
LLM = {
    "vocab_size": 151_936, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 32_768,
}  # fmt: skip


def best_seconds(
    cases: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of each case, the best of its rounds."""
    seconds: dict[str, float] = {}
    for _ in range(rounds):
        for name, case in cases.items():
            start = clock()
            case()
            seconds[name] = min(clock() - start, seconds.get(name, float("inf")))
    return seconds


def loop(rounds: int) -> None:
    """The loop beside the bare steps that it cannot do without."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    vocab = Vocab(Letters(), LLM["vocab_size"])
    sizes = EncoderSettings(width=64, heads=4, units=128, blocks=1), AdapterSettings(blocks=1)
    model = EChatModel(EChatSettings(*sizes, LLM)).eval()
    with torch.no_grad():
        model.speech_head.bias[vocab.speech_edge] = -1e4  # it never ends
    prompt = torch.randn(PROMPT_TOKENS, 64)
    limits = decoder.Limits(TOKENS, TOKENS)
    rules: tuple[Rule, ...] = (NoLongRuns(), WindowLimit())

    def ours(sampling: Sampling, asked: Iterable[Rule]) -> Callable[[], None]:
        def case() -> None:
            generator = torch.Generator().manual_seed(1)
            answer = decoder.Answer(TASKS["tts"], vocab, sampling, tuple(asked), limits, generator)
            assert len(list(decoder.decode(model, [prompt], [answer]))) == TOKENS

        return case

    greedy, forward = Sampling(greedy=True), "forward + head + argmax, our cache"
    cases: dict[str, Callable[[], object]] = {
        "forward + head + argmax, stock model": lambda: stock(model, prompt),
        forward: lambda: bare(model, prompt), "loop, greedy": ours(greedy, ()),
        "loop, greedy, rules on": ours(greedy, rules),
        "loop, sampled as tts, rules on": ours(PRESETS["tts"], rules),
    }  # fmt: skip
    best = best_seconds(cases, rounds, time.process_time)
    out(f"decoding loop, 2 layers of width 64, {TOKENS} speech tokens, one thread")
    out(f"{'':40}{'tokens/CPU s':>13}{'over forward':>14}")
    for name, seconds in best.items():
        over = 100 * (seconds / best[forward] - 1)
        out(f"{name:40}{TOKENS / seconds:>13.0f}{over:>12.0f} %")
    out(f"{'upstream, on another day':40}{UPSTREAM_TOKENS_PER_S:>13}\n")


@torch.inference_mode()
def bare(model: EChatModel, prompt: Tensor) -> None:
    """Nothing but steps: the LLM on our cache, one head, the best id."""
    rows = CachedLLM(model.llm, [prompt])
    table = model.speech_embedding.weight
    for _ in range(TOKENS - 1):
        rows.step(table[int(model.speech_head(rows.state)[0].argmax())][None])
    model.speech_head(rows.state).argmax()


@torch.inference_mode()
def stock(model: EChatModel, prompt: Tensor) -> None:
    """The same by the stock forward and cache of transformers."""
    cache, table = DynamicCache(config=model.llm.config), model.speech_embedding.weight
    embedded = prompt[None]
    for _ in range(TOKENS):
        state = model.llm.model(
            inputs_embeds=embedded, past_key_values=cache, use_cache=True
        ).last_hidden_state[0, -1]
        embedded = table[int(model.speech_head(state).argmax())][None, None]


def batch(directory: Path, rounds: int, threads: int) -> None:
    """Questions one by one and side by side."""
    torch.set_num_threads(threads)
    assistant = EChat.load(directory, device="cpu")
    found = sorted((directory / "samples").glob("*.wav"))
    wavs = [found[number % len(found)] for number in range(ROWS)]
    out(f"{ROWS} questions, {threads} threads: seconds one by one, side by side, and their ratio")
    out(f"{'task':10}{'wall s':>9}{'wall s':>9}{'times':>7}{'CPU s':>9}{'CPU s':>9}{'times':>7}"
        "   greedy results")  # fmt: skip
    for task in ("asr", "s2t", "s2s", "s2s_think"):
        sources = [Utterance(str(number), task, Turn(audio=wav)) for number, wav in enumerate(wavs)]
        alone, together = answered(assistant, sources, 1), answered(assistant, sources, ROWS)
        cases: dict[str, Callable[[], object]] = {
            "alone": partial(answered, assistant, sources, 1),
            "together": partial(answered, assistant, sources, ROWS),
        }
        figures = ""
        for clock in (time.perf_counter, time.process_time):
            best = best_seconds(cases, rounds, clock)
            ratio = best["alone"] / best["together"]
            figures += f"{best['alone']:>9.2f}{best['together']:>9.2f}{ratio:>7.2f}"
        same = sum(one == other for one, other in zip(alone, together, strict=True))
        out(f"{task:10}{figures}   {same} of {ROWS} equal")
    out("")


def answered(assistant: EChat, sources: Sequence[Utterance], rows: int) -> list[Ids]:
    """Greedy answers, so many rows at a time, encoder to last token: their text and speech ids."""
    model, ids = assistant.model, []
    asked = [make_request(model, one, Options(greedy=True)) for one in sources]
    laid = [prepare(model, one, 0, Timer(0.0)) for one in asked]
    for first in range(0, len(laid), rows):
        group = laid[first : first + rows]
        prompts = decoder.embed_prompts(model.network, [one.row for one in group], model.vocab)
        for _ in decoder.decode(model.network, prompts, [one.answer for one in group]):
            pass
        ids += [(one.answer.text.ids, one.answer.speech.ids) for one in group]
    return ids


@torch.inference_mode()
def long(directory: Path, threads: int) -> None:
    """Sample questions one after another: steps of windows beside those of the whole."""
    torch.set_num_threads(threads)
    assistant = EChat.load(directory, device="cpu", speaks=False)
    network = assistant.network
    found = sorted((directory / "samples").glob("*.wav"))
    out("long clips: adapter steps heard in windows of 30 s, against the clip heard at once")
    out(f"{'clip':>8}{'windows':>9}{'cosine':>9}{'whole CPU s':>13}{'windows CPU s':>15}")
    samples = torch.cat([audio.load(path) for path in found])
    for seconds in (40, 60, 120, 300, 600):
        clip = samples.repeat(1 + seconds * audio.SAMPLE_RATE_HZ // len(samples))
        mel = audio.log_mel(clip[: seconds * audio.SAMPLE_RATE_HZ])
        lengths = torch.tensor([len(mel)])
        start = time.process_time()
        whole = network.encode_audio(mel[None], lengths)[0][0]
        middle = time.process_time()
        cut = network.encode_audio_alone(mel[None], lengths)[0][0]
        end = time.process_time()
        likeness = functional.cosine_similarity(whole, cut, dim=1).mean()
        out(f"{seconds:>6} s{len(windows(len(mel))):>9}{likeness:>9.3f}{middle - start:>13.1f}"
            f"{end - middle:>15.1f}")  # fmt: skip
    out("")


def busy(directory: Path, rounds: int, threads: int) -> None:
    """First audio by itself, and beside two processes that never rest."""
    torch.set_num_threads(threads)
    assistant, wav = EChat.load(directory, device="cpu"), directory / "samples" / "question.wav"

    def first_audio_s() -> float:
        start = time.perf_counter()
        stream = assistant.stream(wav, task="s2s", seed=1)
        next(event for event in stream if isinstance(event, AudioPiece))
        return time.perf_counter() - start

    def middle() -> float:
        return median(first_audio_s() for _ in range(rounds))

    first_audio_s()
    quiet = middle()
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(BUSY)]
    try:
        beside = middle()
    finally:
        for other in others:
            other.kill()
            other.wait()
    out(f"first audio, {threads} threads: {quiet:.2f} s; beside {BUSY} busy processes "
        f"{beside:.2f} s, {beside / quiet:.1f} times")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("loop", "batch", "long", "busy"), help="this one alone")
    parser.add_argument("--model", type=Path, default=TINY, help="a model with samples")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of batch and long")
    chosen = parser.parse_args(argv)
    setup(quiet=True)
    parts = {"loop": lambda: loop(chosen.rounds),
             "batch": lambda: batch(chosen.model, chosen.rounds, chosen.threads),
             "long": lambda: long(chosen.model, chosen.threads),
             "busy": lambda: busy(chosen.model, chosen.rounds, chosen.threads)}  # fmt: skip
    for name in [chosen.part] if chosen.part else ("loop", "batch", "long"):
        parts[name]()


if __name__ == "__main__":
    main()
