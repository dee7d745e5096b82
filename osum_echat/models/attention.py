"""Attention of packed rows: each sequence within its own row sees itself alone, in one of several
ways that agree.

`segments` is an attention function registered with transformers, so that the LLM stays the stock
one; asked without segments, as in use, it is sdpa.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Segments:
    """How long the sequences of each row are, in order; each row ends in `padding` tokens."""

    lengths: tuple[tuple[int, ...], ...]
    padding: tuple[int, ...]


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

    segments: (rows, tokens), the number of the sequence within its row, -1 on padding; dtype: of
    the embedded rows. Where a sequence has holes the mask serves.
    """
    if way == "segments":
        own = segments_of(segments)
        if own is not None:
            return {"attention_mask": {"full_attention": None, "sliding_attention": None},
                    "own_segments": own}  # fmt: skip
    allowed = (segments[:, :, None] == segments[:, None]).tril()
    mask = allowed[:, None]
    if way == "eager":  # adds its mask
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": mask}


def segments_of(segments: Tensor) -> Segments | None:
    """The sequences of each row, None where one of them has holes or padding is not last."""
    lengths, padding = [], []
    for row in segments.cpu():
        numbers, counts = row.unique_consecutive(return_counts=True)
        order, sizes = numbers.tolist(), counts.tolist()
        ends_in_padding = order[-1] < 0
        whole = order[: len(order) - ends_in_padding]
        if len({*whole}) < len(whole) or min(whole, default=0) < 0:
            return None
        lengths.append(tuple(sizes[: len(whole)]))
        padding.append(sizes[-1] if ends_in_padding else 0)
    return Segments(tuple(lengths), tuple(padding))


def _by_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None,
    own_segments: Segments | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query: (rows, heads, tokens, width); key, value: (rows, fewer heads, tokens, width).

    Returns (rows, tokens, heads, width), zeros on padding.
    """
    if own_segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return found, None
    rows = []
    every = zip(own_segments.lengths, own_segments.padding, strict=True)
    for number, (lengths, padding) in enumerate(every):
        own = [whole[number : number + 1].split([*lengths, padding], 2)
               for whole in (query, key, value)]  # fmt: skip
        found = [
            functional.scaled_dot_product_attention(
                one_query, one_key, one_value, None, dropout, True, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
            for one_query, one_key, one_value in list(zip(*own, strict=True))[: len(lengths)]
        ]
        blank = value.new_zeros(1, padding, query.shape[1], query.shape[3])
        rows.append(torch.cat((*found, blank), 1))
    return torch.cat(rows), None
