"""What a model of the published size costs on this machine: prints a table of measured figures.

    python -m benchmarks.published_sizes --tokenizer DIR [--pair] [--small] [--dir PLACE]

Random weights of exactly the published layout (888 keys, bfloat16, about 7 GB) are written to a
fresh directory, loaded, asked one understanding turn and one spoken turn of 20 tokens, the same
again with int8 weights, and removed. --pair: instead, the memory of two such models and token2wav
together. --tokenizer: of Qwen2.5. --small: two layers, to see whether it works.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.token2wav_sizes import watched, write_weights
from osum_echat import audio, cli, logs
from osum_echat.generation import decoder
from osum_echat.generation.sampling import Sampling
from osum_echat.models import checkpoint, convert, int8
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.settings import read_settings
from osum_echat.paths import PUBLISHED_SETTINGS
from osum_echat.sequence import compose
from osum_echat.tasks import Task, task_for
from osum_echat.token2wav.model import Token2Wav
from osum_echat.vocab import Vocab
from osum_echat.weights import read, write_torch_file

TOKENS, TEXT_TOKENS = 20, 6     # of a turn; of a spoken turn's text, its end among them
TURNS = ("asr", "s2s")
CLIP_S = 3.0
DEVIATION = 0.02
POOL = 2**24                    # random numbers that all weights are cut from
GB = 1e9
Figures = dict[str, str]


@dataclass(frozen=True, slots=True)
class EndsAt:
    """Random weights end no text: after `count` ids only `end` may follow."""

    count: int
    end: int
    in_speech: ClassVar[bool] = False

    def __call__(self, history: Sequence[int], logits: Tensor) -> Tensor:
        if len(history) < self.count:
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[self.end] = 0.0
        return only


def write(path: Path, settings: EChatSettings, seed: int = 1) -> None:
    """A published file of these sizes with random weights."""
    with torch.device("meta"):
        weights = checkpoint.own_weights(EChatModel(replace(settings, lora=None)))
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(POOL, generator=generator).mul_(DEVIATION).bfloat16()

    def made(name: str, shape: Sequence[int]) -> Tensor:
        if "norm" in name and name.endswith("weight"):
            return torch.ones(tuple(shape), dtype=torch.bfloat16)
        value = torch.empty(tuple(shape), dtype=torch.bfloat16)
        flat = value.flatten()
        for start in range(0, len(flat), POOL):
            part = flat[start : start + POOL]
            part.copy_(pool.roll(crc32(f"{name} {start}".encode()) % POOL)[: len(part)])
        return value

    width = settings.encoder.width
    extras = {
        convert.ENCODER_TABLE: (1, convert.ENCODER_POSITIONS, width),
        convert.ADAPTER_TABLE: (1, convert.ADAPTER_POSITIONS, width),
        f"{convert.UNUSED_NORM}weight": (width,), f"{convert.UNUSED_NORM}bias": (width,),
    }  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in weights.items()} | extras
    own = {name: made(name, shape) for name, shape in shapes.items()}
    write_torch_file(path, checkpoint.published(own, settings.tied))


def loaded(path: Path, settings: EChatSettings, shown: Figures, **options: Any) -> EChatModel:
    """Load and measure."""
    start = time.perf_counter()
    with watched() as memory:
        model = checkpoint.load(path, settings, torch.bfloat16, **options)
    weights = sum(value.nbytes for value in checkpoint.own_weights(model).values())
    shown["weights"] = f"{weights / GB:.2f} GB"
    shown["loading"] = f"{time.perf_counter() - start:.1f} s"
    shown["peak of own memory"] = f"{memory.own / GB:.2f} GB"
    shown["peak with the mapped file"] = f"{memory.whole / GB:.2f} GB"
    shown["peak / weights"] = f"{memory.whole / weights:.2f}"
    return model


def turn(model: EChatModel, vocab: Vocab, name: str, shown: Figures) -> None:
    """One turn of TOKENS tokens; tokens a second by the median step."""
    task = task_for(name)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(int(CLIP_S * audio.SAMPLE_RATE_HZ), generator=generator) * 0.1
    mel = audio.log_mel(noise, model.settings.encoder.mels)
    row = compose(task, vocab, clips=[mel], user_text=None)
    start = time.perf_counter()
    embedded = decoder.embed_prompts(model, [row], vocab)[0]
    heard = time.perf_counter()
    (first_s, *steps_s), kinds = timed(_ids(model, embedded, vocab, task))
    shown[f"{name}: encoder and adapter, {CLIP_S:.0f} s clip"] = f"{heard - start:.1f} s"
    shown[f"{name}: prompt of {len(embedded)} tokens, first id"] = f"{first_s:.1f} s"
    rate = 1 / statistics.median(steps_s)
    bare = 1 / statistics.median(bare_steps(model, embedded, kinds))
    counts = f"{len(kinds) - sum(kinds)} text, {sum(kinds)} speech tokens"
    shown[f"{name}: {counts}"] = f"{rate:.2f} tokens/s"
    shown[f"{name}: bare cached forward"] = f"{bare:.2f} tokens/s"
    shown[f"{name}: our loop is slower by"] = f"{100 * (bare / rate - 1):.1f} %"


def _ids(model: EChatModel, embedded: Tensor, vocab: Vocab, task: Task) -> Iterator[bool]:
    rules = [EndsAt(TEXT_TOKENS - 1, vocab.text_end)] if task.speaks else []
    limits = decoder.Limits(TOKENS, TOKENS)
    answer = decoder.Answer(task, vocab, Sampling(greedy=True), rules, limits)
    for _, token in decoder.decode(model, [embedded], [answer]):
        yield token.is_speech


def timed(tokens: Iterator[bool]) -> tuple[list[float], list[bool]]:
    """The seconds of each step, and whether it was speech."""
    seconds, kinds, before = [], [], time.perf_counter()
    for kind in tokens:
        now = time.perf_counter()
        seconds.append(now - before)
        kinds.append(kind)
        before = now
    return seconds, kinds


@torch.inference_mode()
def bare_steps(model: EChatModel, embedded: Tensor, kinds: Sequence[bool]) -> list[float]:
    """The stock LLM with its cache and one head, nothing chosen: seconds of each later step."""
    cache, seconds = DynamicCache(config=model.llm.config), []
    table = model.llm.get_input_embeddings().weight
    model.llm.model(inputs_embeds=embedded[None], past_key_values=cache, use_cache=True)
    for place, is_speech in enumerate(kinds[1:]):
        start = time.perf_counter()
        state = model.llm.model(
            inputs_embeds=table[place][None, None], past_key_values=cache, use_cache=True
        ).last_hidden_state[0, -1]
        head: Callable[[Tensor], Tensor] = model.speech_head if is_speech else model.llm.lm_head
        head(state).float().argmax().item()
        seconds.append(time.perf_counter() - start)
    return seconds


def written(path: Path, settings: EChatSettings, seed: int = 1) -> Path:
    """Written by another process, so that its memory is not counted here."""
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(path, settings, seed))
    writer.start()
    writer.join()
    return path


def alone(place: Path, settings: EChatSettings, vocab: Vocab, shown: Figures) -> None:
    """One model: loading, two turns, the same with int8 weights."""
    path = written(place / "random.pt", settings)
    shown["keys in the file"] = str(len(read(path)))
    model = loaded(path, settings, shown)
    for name in TURNS:
        turn(model, vocab, name, shown)
    again: Figures = {}
    loaded(path, settings, again, share=model)
    shown["the same once more, sharing: own memory"] = again["peak of own memory"]
    start = time.perf_counter()
    int8.shrink(model)
    shown["int8: shrinking"] = f"{time.perf_counter() - start:.1f} s"
    kept = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    shown["int8: weights"] = f"{kept / GB:.2f} GB"
    small: Figures = {}
    for name in TURNS:
        turn(model, vocab, name, small)
    shown |= {f"int8: {name}": value for name, value in small.items()}


def pair(place: Path, settings: EChatSettings, shown: Figures) -> None:
    """Two models without a weight in common, and token2wav: the memory of all."""
    first, second = (written(place / f"{seed}.pt", settings, seed) for seed in (1, 2))
    voice = write_weights(place / "CosyVoice-300M-25Hz")
    with watched() as memory:
        one = checkpoint.load(first, settings, torch.bfloat16)
        both = one, checkpoint.load(second, settings, torch.bfloat16, share=one)
        speaker = Token2Wav.load(voice, torch.device("cpu"), torch.float32)
    count = sum(part.nbytes for model in both for part in checkpoint.own_weights(model).values())
    shown["two models: weights"] = f"{count / GB:.2f} GB"
    shown["two models and token2wav: own memory"] = f"{memory.own / GB:.2f} GB"
    shown["the same with mapped files"] = f"{memory.whole / GB:.2f} GB"
    shown["sample rate of the voice"] = f"{speaker.sample_rate_hz} Hz"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="of Qwen2.5")
    parser.add_argument("--dir", type=Path, help="where 7 GB may go for a while")
    parser.add_argument("--pair", action="store_true", help="the memory of two and token2wav")
    parser.add_argument("--small", action="store_true", help="two layers of each kind")
    arguments = parser.parse_args(argv)
    settings = read_settings(PUBLISHED_SETTINGS)
    if arguments.small:
        settings = replace(settings, encoder=replace(settings.encoder, blocks=2),
                           llm={**settings.llm, "num_hidden_layers": 2})  # fmt: skip
    shown: Figures = {}

    def work() -> None:
        vocab = Vocab.from_directory(arguments.tokenizer, settings.llm["vocab_size"])
        with tempfile.TemporaryDirectory(dir=arguments.dir) as place:
            if arguments.pair:
                pair(Path(place), settings, shown)
            else:
                alone(Path(place), settings, vocab, shown)
        width = max(map(len, shown))
        logs.out("\n".join(f"{name:<{width}}  {value}" for name, value in shown.items()))

    return cli.run("published_sizes", work)


if __name__ == "__main__":
    sys.exit(main())
