"""Attention of packed rows: each sequence within its own row sees itself alone, in one of several
ways that agree.

`segments` and `varlen` are attention functions registered with transformers, so that the LLM stays
the stock one; asked without parts, as in use, they are sdpa.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat.errors import ConfigError

WAYS = {  # our name -> the name that transformers knows it by
    "mask": "sdpa",  # scaled_dot_product_attention under a mask of blocks, over whole rows
    "eager": "eager",  # products and softmax written out, under the same mask
    "segments": "osum_segments",  # scaled_dot_product_attention of one sequence after the other
    "varlen": "osum_varlen",  # torch.nn.attention.varlen: one call of a kernel of graphic cards
}
REFUSED = {  # what transformers knows besides
    "flex_attention": "it must be compiled, and has no backward on a CPU",
    "flash_attention_2": "it needs a package beside torch",
    "flash_attention_3": "it needs a package beside torch",
    "flash_attention_4": "it needs a package beside torch",
}
KERNEL_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Parts:
    """How long the sequences of each row are, in order; each row ends in `padding` tokens.

    borders: (sequences + 1,) int32 on the device, where each sequence of all rows begins once
    padding is left out; kept: (tokens,) bool, False on padding, over rows laid end to end. Both for
    the kernel of `varlen` alone.
    """

    lengths: tuple[tuple[int, ...], ...]
    padding: tuple[int, ...]
    borders: Tensor | None = None
    kept: Tensor | None = None


def chosen(name: str, device: torch.device) -> str:
    """The way of that name on a device; `auto`: segments on a CPU, the mask elsewhere.

    Measured on a CPU (benchmarks/training.py): on rows of eight sequences the mask costs four times
    the segments. Raises ConfigError for a way that does not exist, or not on that device.
    """
    if name == "auto":
        return "segments" if device.type == "cpu" else "mask"
    if name in REFUSED:
        instead = "segments" if device.type == "cpu" else "varlen"
        raise ConfigError(f"engine.attention: {name!r} is not used here: {REFUSED[name]}; "
                          f"take {instead}")  # fmt: skip
    if name not in WAYS:
        known = ", ".join(("auto", *WAYS))
        raise ConfigError(f"engine.attention: {name!r} is not one of {known}")
    if name == "varlen" and device.type == "cpu":
        raise ConfigError("engine.attention: 'varlen' is a kernel of graphic cards, and this "
                          "device is a CPU; take segments, or auto")  # fmt: skip
    return name


def use(llm: Any, way: str) -> None:
    """Let a stock LLM of transformers attend in that way, one of WAYS."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name, function in (("segments", _by_segments), ("varlen", _by_kernel)):
        AttentionInterface.register(WAYS[name], function)
        AttentionMaskInterface.register(WAYS[name], sdpa_mask)
    llm.set_attn_implementation(WAYS[way])


def arguments(
    way: str, segments: Tensor, visible: Tensor | None, dtype: torch.dtype
) -> dict[str, Any]:
    """What the LLM must be told for sequences of a row to stay apart.

    segments: (rows, tokens), the number of the sequence within its row, -1 on padding; visible:
    (rows, tokens), False on tokens that no other may attend to; dtype: of the embedded rows. Where
    a sequence has holes, or tokens are hidden, the mask serves in place of parts.
    """
    if way in ("segments", "varlen") and visible is None:
        parts = parts_of(segments, on_device=way == "varlen")
        if parts is not None:
            return {"attention_mask": {"full_attention": None, "sliding_attention": None},
                    "parts": parts}  # fmt: skip
    allowed = (segments[:, :, None] == segments[:, None]).tril()
    if visible is not None:
        allowed &= visible[:, None]
    mask = allowed[:, None]
    if way == "eager":  # adds its mask
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": mask}


def parts_of(segments: Tensor, on_device: bool = False) -> Parts | None:
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
    if not on_device:
        return Parts(tuple(lengths), tuple(padding))
    sizes = torch.tensor([0, *(size for row in lengths for size in row)])
    borders = sizes.cumsum(0).to(segments.device, torch.int32)
    return Parts(tuple(lengths), tuple(padding), borders, (segments >= 0).flatten())


def _by_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, parts: Parts | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query: (rows, heads, tokens, width); key, value: (rows, fewer heads, tokens, width).

    Returns (rows, tokens, heads, width), zeros on padding.
    """
    if parts is None:
        return _by_mask(module, query, key, value, attention_mask, dropout, scaling, **others)
    rows = []
    for number, (lengths, padding) in enumerate(zip(parts.lengths, parts.padding, strict=True)):
        own = [whole[number : number + 1].split([*lengths, padding], 2)
               for whole in (query, key, value)]  # fmt: skip
        found = []
        for asked, known, told in list(zip(*own, strict=True))[: len(lengths)]:
            heard = functional.scaled_dot_product_attention(
                asked, known, told, dropout_p=dropout, is_causal=True, scale=scaling,
                enable_gqa=True,
            )  # fmt: skip
            found.append(heard.transpose(1, 2))
        blank = value.new_zeros(1, padding, query.shape[1], query.shape[3])
        rows.append(torch.cat((*found, blank), 1))
    return torch.cat(rows), None


def _by_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, parts: Parts | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As `_by_segments`, by one call; the kernel knows half precision only, and no dropout."""
    if parts is None:
        return _by_mask(module, query, key, value, attention_mask, dropout, scaling, **others)
    from torch.nn.attention.varlen import varlen_attn

    assert parts.borders is not None and parts.kept is not None
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    if dtype not in KERNEL_TYPES or dropout:
        raise ConfigError(f"engine.attention: 'varlen' computes in bf16 without dropout, not in "
                          f"{dtype} with dropout {dropout}; take engine.precision=bf16, or "
                          "engine.attention=segments")  # fmt: skip
    rows, heads, tokens, width = query.shape
    flat = (one.transpose(1, 2).flatten(0, 1)[parts.kept].to(dtype) for one in (query, key, value))
    longest = max(size for row in parts.lengths for size in row)
    kernel: Any = varlen_attn
    found: Tensor = kernel(
        *flat, parts.borders, parts.borders, longest, longest,
        scale=scaling, window_size=(-1, 0), enable_gqa=heads != key.shape[1],
    )  # fmt: skip
    whole = found.new_zeros(rows * tokens, heads, width)
    return whole.index_put((parts.kept,), found).view(rows, tokens, heads, width), None


def _by_mask(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float, scaling: float | None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, **others
    )
    return found, None
