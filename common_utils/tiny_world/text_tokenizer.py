"""The text pieces of the tiny model: a byte-level BPE of at most 4000 pieces.

Taught on the tiny world, they are enough for each of its words to be one piece.

Chat marks, label tags, `<think>`, `<think end>` and `&&` are one piece each. So are the system
prompts and the fixed words of the label thought: a fifth of the tokens, with nothing to learn.

    python -m common_utils.tiny_world.text_tokenizer --out DIR
"""
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from common_utils.command import command
from common_utils.tiny_world import world as tiny
from common_utils.tiny_world.world import Exchange, SaidTurn, World, load_world, normalise
from osum_echat.errors import ConfigError
from osum_echat.logs import logger
from osum_echat.paths import PUBLISHED_PROMPTS
from osum_echat.records import Labels
from osum_echat.tasks import TASKS, Prompts
from osum_echat.thinking import ENGLISH, THINK_END, THINK_START, label_thought
from osum_echat.vocab import UNKNOWN

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECES = 4000
LONGEST_TOKENS = 2048
WORLD_TEXTS = 10_000                     # exchanges to learn from
PROMPT_WEIGHT = 40                       # of a prompt, against one exchange
LEAST_PIECES = 256 + 64                  # every byte, and room for marks and tags

log = logger(__name__)


def single_pieces() -> tuple[str, ...]:
    """What is never cut: thinking marks, the unknown mark and every label tag."""
    events = sorted({event for events in tiny.EVENTS.values() for event in events})
    labels = dict.fromkeys(
        (*tiny.AGES, *tiny.GENDERS, *tiny.EMOTIONS, *events, *tiny.STYLES))
    fixed = (
        *dict.fromkeys(f"You are OSUM-chat, {task.system}" for task in TASKS.values()),
        ENGLISH.heard.rstrip(), *ENGLISH.cues,
    )  # fmt: skip
    return (THINK_START, THINK_END, UNKNOWN, *(f"<{label}>" for label in labels), *fixed)


def world_texts(world: World, size: int) -> Iterator[str]:
    """What a model of the tiny world reads and writes: prompts, words, thoughts and replies."""
    for task in TASKS.values():
        yield from [task.opening] * max(1, size // 100)
    for sentence, _ in world.all_reply_sentences():
        yield sentence
    for exchange in world.exchanges("train", 0, size):
        turns: tuple[SaidTurn | Exchange, ...] = (*exchange.turns, exchange)
        for turn in turns:
            labels = Labels(**asdict(turn.labels), style=turn.reply_style)
            yield turn.user_text
            yield normalise(turn.user_text)
            yield label_thought(ENGLISH, normalise(turn.user_text), labels) + turn.reply_text
        yield exchange.thought


def train(texts: Iterable[str], out: Path, pieces: int = PIECES) -> int:
    """Teach the BPE and write it to `out`, loadable by AutoTokenizer; returns its size."""
    if pieces < LEAST_PIECES:
        raise ConfigError(f"--pieces {pieces}: need {LEAST_PIECES} or more, one a byte and marks")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    kept = [AddedToken(piece, special=False, normalized=False) for piece in single_pieces()]
    trainer = trainers.BpeTrainer(
        vocab_size=pieces - len(kept), min_frequency=2, show_progress=False,
        special_tokens=list(MARKS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(map(_without_tags, texts), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.add_tokens(kept)
    return save(tokenizer, out, MARKS[2], MARKS[0], model_max_length=LONGEST_TOKENS)


def save(tokenizer: Any, out: Path, end: str, padding: str, **more: Any) -> int:
    """Write a tokenizer of the tokenizers library, loadable by AutoTokenizer; returns its size."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=padding,
        clean_up_tokenization_spaces=False, **more,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(out))
    config = out / "tokenizer_config.json"       # a class name that every version knows
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {
        "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", "utf-8")
    return len(fast)


def _without_tags(text: str) -> str:
    for piece in (*MARKS, *single_pieces()):
        text = text.replace(piece, "\n")
    return text


def make(out: Path, pieces: int = PIECES, prompts: Path = PUBLISHED_PROMPTS) -> None:
    """Learn from the tiny world and prompts."""
    pools = Prompts.from_file(prompts, "english").pools.values()
    learnt = [*world_texts(load_world(), WORLD_TEXTS), *([*chain(*pools)] * PROMPT_WEIGHT)]
    log.info("%s: %d pieces", out, train(learnt, out, pieces))


main = command(make, prompts="of understanding tasks; the English ones are learned from")

if __name__ == "__main__":
    sys.exit(main())
