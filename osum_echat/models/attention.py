"""Attention of packed rows: each sequence within its own row sees itself alone, in one of several
ways that agree.

`segments` is an attention function registered with transformers, so that the LLM stays the stock
one; asked without segments, as in use, it is sdpa.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat.settings import check_word

WAYS = {  # our name -> the name that transformers knows it by
    "mask": "sdpa",  # scaled_dot_product_attention under a mask of blocks, over whole rows
    "eager": "eager",  # products and softmax written out, under the same mask
    "segments": "osum_segments",  # scaled_dot_product_attention of one sequence after the other
}


def chosen(name: str, device: torch.device) -> str:
    """The way of that name on a device; `auto`: segments on a CPU, the mask elsewhere.

    Measured on a CPU (benchmarks/training.py): on rows of eight sequences the mask costs four times
    the segments. Raises ConfigError for a way that does not exist.
    """
    if name == "auto":
        return "segments" if device.type == "cpu" else "mask"
    check_word("engine.attention", name, ("auto", *WAYS))
    return name


def use(llm: Any, way: str) -> None:
    """Let a stock LLM of transformers attend in that way, one of WAYS."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(WAYS["segments"], _by_segments)
    AttentionMaskInterface.register(WAYS["segments"], sdpa_mask)
    llm.set_attn_implementation(WAYS[way])


def arguments(way: str, segments: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """What the LLM must be told for sequences of a row to stay apart.

    segments: (rows, tokens), the number of the sequence within its row, -1 on the padding at its
    end; dtype: of the embedded rows.
    """
    if way == "segments":
        return {"attention_mask": {"full_attention": None, "sliding_attention": None},
                "own_lengths": [row.unique_consecutive(return_counts=True)[1].tolist()
                                for row in segments.cpu()]}  # fmt: skip
    allowed = (segments[:, :, None] == segments[:, None]).tril()
    mask = allowed[:, None]
    if way == "eager":  # adds its mask
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": mask}


def _by_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None,
    own_lengths: Sequence[list[int]] | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query: (rows, heads, tokens, width); key, value: (rows, fewer heads, tokens, width).

    own_lengths: of the sequences of each row, in order, and of its padding, which is as one.
    Returns (rows, tokens, heads, width).
    """
    if own_lengths is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return found, None
    rows = []
    for number, lengths in enumerate(own_lengths):
        own = (whole[number : number + 1].split(lengths, 2) for whole in (query, key, value))
        found = [
            functional.scaled_dot_product_attention(
                one_query, one_key, one_value, None, dropout, True, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
            for one_query, one_key, one_value in zip(*own, strict=True)
        ]
        rows.append(torch.cat(found, 1))
    return torch.cat(rows), None
