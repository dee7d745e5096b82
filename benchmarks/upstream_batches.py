"""The batches that OSUM-EChat's dynamic batching makes of the same samples, to compare with.

A pool for each output type; a pool is given when one more sample would take it over its limit, and
what is left at the end is lost but for one pool.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

CAPS = {
    "speech2text_token": 0.8, "speech2text_token_streaming": 0.6, "speech2text_token_think": 0.6,
    "speech2text_token_history": 0.6, "text2text": 0.6,
}  # fmt: skip
FIXED_TOKENS = 58  # upstream's allowance for the chat marks and system prompt
_NO_PROMPT = "text without a prompt"


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: its number, kind, 10 ms frames, and tokens of label, prompt and speech."""

    number: int
    output_type: str
    frames: int
    label: int
    prompt: int
    speech: int

    @property
    def tokens(self) -> float:
        """Length as upstream counts it: an eighth of the frames, and no rounding."""
        hears = not self.output_type.startswith(("text2token", "text2text"))
        return self.frames / 8 * hears + self.label + self.prompt + self.speech + FIXED_TOKENS


@dataclass(slots=True)
class _Pool:
    samples: list[Sample] = field(default_factory=list)
    frames: int = 0
    tokens: float = 0.0


def upstream_batches(
    samples: Iterable[Sample], frames_limit: int, tokens_limit: int
) -> list[list[Sample]]:
    """Batches in the order they are given, the lost ones left out."""
    pools: dict[str, _Pool] = {}
    batches = []
    for sample in samples:
        is_bare = sample.output_type == "text" and sample.prompt == 0
        name = _NO_PROMPT if is_bare else sample.output_type
        pool = pools.setdefault(name, _Pool())
        frames, tokens = max(pool.frames, sample.frames), max(pool.tokens, sample.tokens)
        count = len(pool.samples) + 1
        cap = int(tokens_limit * CAPS.get(name, 1.0))
        if frames * count > frames_limit or tokens * count > cap:
            if pool.samples:
                batches.append(pool.samples)
            pools[name] = _Pool([sample], sample.frames, sample.tokens)
        else:
            pool.samples.append(sample)
            pool.frames, pool.tokens = frames, tokens
    flushed = pools.get("text")
    return [*batches, flushed.samples] if flushed and flushed.samples else batches
