"""How well replies go with questions, as the stock LLM sees it."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

SYSTEM = "You are a warm friend who listens and answers in one or two short sentences."
NO_QUESTION = "..."


class Ranker:
    """The stock LLM and its tokenizer: log probabilities of replies to questions."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        from transformers import AutoTokenizer, Qwen2ForCausalLM

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        self.model: Any = Qwen2ForCausalLM.from_pretrained(str(directory), dtype=dtype).eval()
        self.nothing: dict[str, float] = {}

    @torch.inference_mode()
    def scores(self, question: str, replies: Sequence[str]) -> list[float]:
        """The log probability of each reply to the question, its end included."""
        from transformers import DynamicCache

        prompt = self._ids(
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}"
            "<|im_end|>\n<|im_start|>assistant\n"
        )
        rows = [self._ids(f"{reply}<|im_end|>") for reply in replies]
        width, count = max(map(len, rows)), len(rows)
        cache = DynamicCache(config=self.model.config)
        first = self.model(
            torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        cache.batch_repeat_interleave(count)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        logits = self.model(ids, past_key_values=cache, use_cache=True).logits
        before = torch.cat((first.expand(count, 1, -1), logits[:, :-1]), 1).float()
        chosen = before.gather(-1, ids[..., None])[..., 0] - before.logsumexp(-1)
        valid = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
        total: Tensor = (chosen * valid).sum(1)
        return [float(one) for one in total]

    def lifts(self, question: str, replies: Sequence[str]) -> list[float]:
        """How much likelier each reply is to this question than to none."""
        unknown = [reply for reply in replies if reply not in self.nothing]
        if unknown:
            self.nothing.update(zip(unknown, self.scores(NO_QUESTION, unknown), strict=True))
        return [
            score - self.nothing[reply]
            for score, reply in zip(self.scores(question, replies), replies, strict=True)
        ]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def right_first(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], rng: Random, among: int = 10
) -> list[bool]:
    """For each question and its reply, whether that reply ranks first among `among` of the pairs.

    The others are drawn from the replies to other questions that differ from it.
    """
    found = []
    for question, reply in pairs:
        others = sorted({other for asked, other in pairs if other != reply and asked != question})
        drawn = rng.sample(others, min(among - 1, len(others)))
        lifts = ranker.lifts(question, [reply, *drawn])
        found.append(lifts[0] > max(lifts[1:], default=float("-inf")))
    return found
