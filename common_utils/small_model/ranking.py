"""How well replies go with questions, as the stock LLM sees it."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat import logs

SYSTEM = "You are a warm friend who listens and answers in one or two short sentences."
NO_QUESTION = "..."
ROWS = 32  # pairs that are scored at once

Pair = tuple[str, str]


class Ranker:
    """The stock LLM and its tokenizer: log probabilities of replies to questions."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        from transformers import AutoTokenizer, Qwen2ForCausalLM

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        self.model: Any = Qwen2ForCausalLM.from_pretrained(str(directory), dtype=dtype).eval()
        self.known: dict[Pair, float] = {}
        self.opening = self._ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        self.opened = self._open()

    def lifts(self, pairs: Sequence[Pair]) -> list[float]:
        """How much likelier each reply is to its question than to none; pairs: (question, reply).

        Of the log probability of the reply, its end included.
        """
        self._learn({*pairs} | {(NO_QUESTION, reply) for _, reply in pairs})
        return [self.known[pair] - self.known[NO_QUESTION, pair[1]] for pair in pairs]

    @torch.inference_mode()
    def _learn(self, pairs: Iterable[Pair]) -> None:
        """Score what is not known yet, pairs of like length together."""
        rows = {pair: self._row(*pair) for pair in sorted({*pairs} - self.known.keys())}
        order = sorted(rows, key=lambda pair: len(rows[pair][0]))
        for at in logs.progress(range(0, len(order), ROWS), "replies"):
            batch = order[at : at + ROWS]
            scores = self._scores([rows[pair] for pair in batch])
            self.known.update(zip(batch, scores, strict=True))

    def _row(self, question: str, reply: str) -> tuple[list[int], int]:
        """The ids of question and reply, and how many of them are not the reply's."""
        prompt = self._ids(f"{question}<|im_end|>\n<|im_start|>assistant\n")
        return prompt + self._ids(f"{reply}<|im_end|>"), len(prompt)

    def _scores(self, rows: Sequence[tuple[list[int], int]]) -> list[float]:
        """The log probability of each row's reply. Rows are padded at their ends, unmasked."""
        ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
        is_reply = torch.zeros(ids.shape, dtype=torch.bool)
        for number, (row, start) in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            is_reply[number, start : len(row)] = True
        cache = deepcopy(self.opened)
        cache.batch_repeat_interleave(len(rows))
        out = self.model.model(ids, past_key_values=cache, use_cache=True)
        hidden: Tensor = out.last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1][is_reply[:, 1:]]).float()
        own = logits.gather(1, ids[is_reply][:, None])[:, 0] - logits.logsumexp(1)
        return [float(each.sum()) for each in own.split(is_reply.sum(1).tolist())]

    @torch.inference_mode()
    def _open(self) -> Any:
        """The keys and values of what all prompts begin with."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model.model(torch.tensor([self.opening]), past_key_values=cache, use_cache=True)
        return cache

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
