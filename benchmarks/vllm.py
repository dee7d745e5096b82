"""How fast vLLM decodes beside our own loop on this CPU, for several rows side by side.

    .venv-vllm/bin/python -m benchmarks.vllm [--model tiny small] [--rows 1 8 32] [--threads 1]

Tokens a second of all rows together, by the clock and by CPU time: prompts of 100 tokens are read
before the clock starts, then every row grows by as many tokens, greedy, float32. Rounds take turns
and the best of each counts, since the machine may have other work; look at the ratio.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from osum_echat import cli
from osum_echat.generation.decoder import Answer, Limits, Token, decode
from osum_echat.generation.sampling import Sampling, forbid
from osum_echat.generation.vllm_engine import VllmEngine
from osum_echat.inference.assistant import EChat
from osum_echat.logs import out, setup
from osum_echat.tasks import TASKS

PROMPT_TOKENS = 100
PHASES = {"text": "t2t", "speech": "tts"}
Decode = Callable[[Sequence[Tensor], Sequence[Answer]], Iterator[tuple[int, Token]]]


@dataclass(frozen=True, slots=True)
class NeverEnds:
    """Keeps an id out of the text."""

    end: int
    in_speech: ClassVar[bool] = False

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        return forbid([self.end], logits)


def timed(
    decoded: Decode, prompts: Sequence[Tensor], assistant: EChat, task: str, tokens: int
) -> list[float]:
    """Tokens a second after the first of every row, by the clock and of the CPU."""
    limits, rules = Limits(tokens, tokens), (NeverEnds(assistant.vocab.text_end),)
    answers = [Answer(TASKS[task], assistant.vocab, Sampling(greedy=True), rules, limits)
               for _ in prompts]  # fmt: skip
    made, start, cpu = 0, 0.0, 0.0
    for _ in decoded(prompts, answers):
        made += 1
        if made == len(prompts):
            start, cpu = time.perf_counter(), time.process_time()
    assert made == tokens * len(prompts), "a row found its end"
    left = made - len(prompts)
    return [left / (time.perf_counter() - start), left / (time.process_time() - cpu)]


def table(source: str, chosen: argparse.Namespace) -> None:
    """Both engines on one model."""
    own = EChat.load(source, device="cpu", dtype="fp32", speaks=False)
    other = EChat.load(source, device="cpu", dtype="fp32", speaks=False, engine="vllm", share=own)
    with torch.no_grad():       # answers that find no end
        own.network.speech_head.bias[own.vocab.speech_edge] = -1e4
    assert isinstance(other.model.engine, VllmEngine)
    engines: dict[str, Decode] = {
        "own": partial(decode, own.network), "vllm": other.model.engine.decode
    }  # fmt: skip
    for phase in chosen.ids:
        for count in chosen.rows:
            generator = torch.Generator().manual_seed(count)
            ids = torch.randint(300, 2000, (count, PROMPT_TOKENS), generator=generator)
            prompts = own.network.embed_ids(ids).detach().unbind()
            best = {name: [0.0, 0.0] for name in engines}
            for _ in range(chosen.rounds):
                for name, decoded in engines.items():
                    found = timed(decoded, prompts, own, PHASES[phase], chosen.tokens)
                    best[name] = [max(pair) for pair in zip(best[name], found, strict=True)]
            figures = "".join(
                f"{best['own'][clock]:>9.0f}{best['vllm'][clock]:>9.0f}"
                f"{best['vllm'][clock] / best['own'][clock]:>7.2f}" for clock in (0, 1)
            )  # fmt: skip
            out(f"{source:8}{phase:8}{count:>5}{figures}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the models asked for and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["tiny", "small"], help="tiny small or paths")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--ids", nargs="+", choices=tuple(PHASES), default=[*PHASES])
    parser.add_argument("--tokens", type=int, default=48, help="that every row grows by")
    parser.add_argument("--rounds", type=int, default=3)
    cli.add_threads(parser)
    chosen = parser.parse_args(argv)
    setup(quiet=True)
    out(f"tokens a second by the clock, and a CPU second; {torch.get_num_threads()} threads")
    out(f"{'model':8}{'ids':8}{'rows':>5}" + f"{'own':>9}{'vllm':>9}{'times':>7}" * 2)
    for source in chosen.model:
        table(source, chosen)


if __name__ == "__main__":
    main()
