"""What training costs on this machine, against the plain ways: prints a table of ratios.

    python -m benchmarks.training [--only loss layouts step] [--tokens 12000]

Work is counted in CPU seconds, so that a busy machine changes little. The loss has the published
156,033 columns; the model is of the tiny sizes with random weights.
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, multiprocessing
from torch.nn import functional

from osum_echat import logs
from osum_echat.data.batching import LAYOUTS
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.models.loss import cross_entropy
from osum_echat.sequence import IGNORED, Batch
from osum_echat.sequence import Sequence as Row
from osum_echat.training.engine import EngineSettings, LocalEngine
from osum_echat.training.stages import StageSettings

CPU = torch.device("cpu")
TEXT, SPEECH = 151_936, 4097  # columns of the published heads
NAIVE_BYTES = 4096 * (TEXT + SPEECH) * 4
TIMED_TOKENS = 256
NARROW = 64  # width where only memory is measured: it is that of logits, whatever the width
LLM = {"model_type": "qwen2", "vocab_size": 3500, "hidden_size": 256, "intermediate_size": 1024,
       "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
       "max_position_embeddings": 4096, "tie_word_embeddings": True}  # fmt: skip
ROW_TOKENS, ROWS = 2048, 4
SHORTEST, LONGEST = 20, 1500
Figure = tuple[str, str, str]  # what, measured, wanted
Lengths = tuple[int, int, int]  # tokens of an utterance: prompt, answer in words and in speech


def network() -> EChatModel:
    """The tiny model's LLM, with random weights; its ears are not asked."""
    torch.manual_seed(1)
    ears = EncoderSettings(80, 16, 2, 32, 1, 0.0), AdapterSettings(2, 16, 1, 0.0)
    return EChatModel(EChatSettings(*ears, LLM, 2048))


def engine() -> LocalEngine:
    settings = EngineSettings(precision="fp32")
    return LocalEngine(network(), StageSettings(train=("llm", "speech")), settings, CPU)


def stream(tokens: int, rng: random.Random) -> list[Lengths]:
    """Utterances of very mixed lengths, unsorted, up to so many tokens."""
    found: list[Lengths] = []
    while sum(map(sum, found)) < tokens:
        total = round(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
        prompt, words = sorted(rng.sample(range(1, total), 2))
        found.append((prompt, words - prompt, total - words))
    return found


def laid(rows: Sequence[Sequence[Lengths]], between: bool = False) -> Batch:
    """A batch of random ids whose answers are trained.

    between: as upstream pads: every part of a row to the longest of its kind.
    """
    widths = [max(one[part] for row in rows for one in row) for part in range(3)]
    whole = sum(widths) if between else max(sum(map(sum, row)) for row in rows)
    shape = (len(rows), whole)
    ids = torch.randint(0, LLM["vocab_size"], shape)  # type: ignore[call-overload]
    targets, segments = torch.full(shape, IGNORED), torch.full(shape, -1)
    positions = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for place, one in enumerate(row):
            position = 0
            for part, size in enumerate(one):
                at = slice(start, start + size)
                segments[number, at] = place
                positions[number, at] = torch.arange(position, position + size)
                if part:
                    targets[number, at] = ids[number, at]
                position += size
                start += widths[part] if between else size
    if between:
        segments[0, -1] = 1 if segments[0, -1] < 0 else segments[0, -1]  # a mask is needed
    names = [["bench"] * max(2, len(row)) for row in rows]
    return Batch(
        keys=[["key"] for _ in rows], tasks=names, ids=ids, targets=targets, valid=segments >= 0,
        positions=positions, joint=torch.ones(shape, dtype=torch.bool), segments=segments,
        mels=None, mel_lengths=torch.zeros(0, dtype=torch.long), spans=[],
    )  # fmt: skip


def in_order(lengths: Sequence[Lengths], between: bool) -> Iterator[Batch]:
    """Batches of the stream as it comes, of at most so many places as a packed batch has."""
    batch: list[Lengths] = []
    for one in [*lengths, None]:
        more = [*batch, one] if one is not None else batch
        if between:
            places = sum(map(max, zip(*more, strict=True))) * len(more)
        else:
            places = max(map(sum, more)) * len(more)
        if one is None or (batch and places > ROW_TOKENS * ROWS):
            yield laid([[each] for each in batch], between)
            batch = []
        if one is not None:
            batch.append(one)


def by_layout(lengths: Sequence[Lengths], layout: str) -> list[Batch]:
    """Batches as the loader lays them out."""
    rows = [Row(str(number), "bench", [0] * sum(one), [], [], [], True)
            for number, one in enumerate(lengths)]  # fmt: skip
    made = LAYOUTS[layout](rows, ROW_TOKENS, ROWS, random.Random(2))
    return [laid([[lengths[int(one.key)] for one in row] for row in batch]) for batch in made]


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rate(batches: Sequence[Batch]) -> float:
    """Trained tokens for each CPU second of whole steps."""
    trainer = engine()
    trainer.step(batches[:1], 1e-4)
    trained = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    return trained / cpu_seconds(lambda: [trainer.step([batch], 1e-4) for batch in batches])


def layouts(tokens: int) -> Iterator[Figure]:
    """Packing against the other ways, on an unsorted and on a sorted stream."""
    mixed = stream(tokens, random.Random(5))
    packed = rate(by_layout(mixed, "packed"))
    between, right = (rate(list(in_order(mixed, way))) for way in (True, False))
    yield "unsorted: packed / padded between parts", f"{packed / between:.2f}", "1.50 or more"
    yield "unsorted: packed / right-padded rows", f"{packed / right:.2f}", "1.20 or more"
    ordered = sorted(mixed, key=sum)
    between = rate(list(in_order(ordered, True)))
    bucketed = rate(by_layout(ordered, "bucketed"))
    yield "sorted: packed / padded between parts", f"{packed / between:.2f}", "1.10 or more"
    yield "sorted: packed / bucketed", f"{packed / bucketed:.2f}", "1.00 or more"
    yield "packed: trained tokens a CPU second", f"{packed:.0f}", ""


def heads(tokens: int, width: int) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(3)
    shapes = ((tokens, width), (TEXT, width), (SPEECH, width), (SPEECH,))
    leaves = [(0.02 * torch.randn(shape)).requires_grad_() for shape in shapes]
    return leaves, torch.randint(0, TEXT + SPEECH, (tokens,))


def ours(leaves: list[Tensor], targets: Tensor) -> None:
    states, text, speech, bias = leaves
    joint = torch.ones_like(targets, dtype=torch.bool)
    cross_entropy(states, targets, joint, text, speech, bias).total.backward()


def naive(leaves: list[Tensor], targets: Tensor) -> None:
    states, text, speech, bias = leaves
    logits = torch.cat(
        (functional.linear(states, text), functional.linear(states, speech, bias)), -1
    )
    functional.cross_entropy(logits, targets, reduction="sum").backward()


def loss_memory(tokens: int, width: int, answer: "multiprocessing.SimpleQueue[float]") -> None:
    """In a process of its own: peak memory of the loss, gradients of parameters apart."""
    torch.set_num_threads(1)
    leaves, targets = heads(tokens, width)
    ours(
        [leaves[0][:2].detach().requires_grad_(), *leaves[1:]], targets[:2]
    )  # libraries, gradients
    for one in leaves:
        one.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    current = pages * resource.getpagesize() // 1024
    ours(leaves, targets)
    peak = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    own = sum(one.numel() * 4 for one in leaves)
    answer.put((peak - current) * 1024.0 - own)


def loss(width: int) -> Iterator[Figure]:
    """Memory and time of the loss at the published number of columns."""
    answer: multiprocessing.SimpleQueue[float] = multiprocessing.get_context("spawn").SimpleQueue()
    child = multiprocessing.get_context("spawn").Process(
        target=loss_memory, args=(4096, NARROW, answer)
    )
    child.start()
    child.join()
    if child.exitcode == 0:
        taken = answer.get()
        words = f"{taken / 1e6:.0f} MB, {100 * taken / NAIVE_BYTES:.1f} %"
        yield "loss of 4096 x 156033: peak memory of 2.56 GB", words, "15 % or less"
    leaves, targets = heads(TIMED_TOKENS, width)
    for work in (ours, naive):
        work(leaves, targets)
    both = [min(cpu_seconds(partial(work, leaves, targets)) for _ in range(2))
            for work in (ours, naive)]  # fmt: skip
    what = f"loss of {TIMED_TOKENS} x 156033, width {width}: CPU s / naive"
    yield what, f"{both[0] / both[1]:.2f}", "1.10 or less"


def step(tokens: int) -> Iterator[Figure]:
    """Our step against forward, backward and AdamW by hand, in turns on one batch."""
    batch = by_layout(stream(min(tokens, 6000), random.Random(6)), "packed")[0]
    trainer, model = engine(), network()
    model.attend_by(trainer.model.attends_by)
    trained = [part for name, part in model.named_parameters()
               if name.startswith(("llm.", "speech"))]  # fmt: skip
    for part in model.parameters():
        part.requires_grad_(any(part is one for one in trained))
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def bare() -> None:
        model.loss(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    both: tuple[list[float], list[float]] = ([], [])
    for _ in range(4):
        both[0].append(cpu_seconds(lambda: trainer.step([batch], 1e-4)))
        both[1].append(cpu_seconds(bare))
    ratio = min(both[0][1:]) / min(both[1][1:])
    yield "our step / bare forward, backward, AdamW", f"{ratio:.2f}", "1.05 or less"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What training costs, against the plain ways.")
    every = ("loss", "layouts", "step")
    parser.add_argument("--only", nargs="+", choices=every, default=list(every))
    parser.add_argument("--tokens", type=int, default=12_000, help="of the stream of the layouts")
    parser.add_argument("--width", type=int, default=256, help="of the hidden states of the loss")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    work = {"loss": lambda: loss(arguments.width), "layouts": lambda: layouts(arguments.tokens),
            "step": lambda: step(arguments.tokens)}
    logs.out(f"{'':52}{'measured':>28}  wanted")
    for name in arguments.only:
        for what, measured, wanted in work[name]():
            logs.out(f"{what:52}{measured:>28}  {wanted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
