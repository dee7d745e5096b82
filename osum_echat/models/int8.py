"""Weights of the LLM's blocks kept as small whole numbers: a half or quarter of bfloat16, on a CPU.

Each row of a weight is a scale and whole numbers from -127 to 127. A weight that was made from
numbers of 4 bits (groups of 32 in a row, each with a scale and a least value, as GGUF's Q4_1) keeps
these: half the memory and time again, and nothing lost. The products are those of torch's own
kernels, in bfloat16. LoRA layers stay beside such weights. Tables, encoder and adapter stay as they
are; a text head in float32 gets a copy for decoding.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from osum_echat.models.echat import EChatModel
from osum_echat.models.lora import Change

LARGEST = 127
GROUP, LEVELS, MIDDLE = 32, 16, 8   # of 4 bits: numbers in a group, their values, the middle one
CLOSE = 0.1                         # of a level's width: farther from it is another number
SOME_ROWS = 8                       # that are looked at first
WIDTHS = 16                         # torch's kernel for several rows crashes at others
BLOCK_ROWS = 64                     # what torch packs together
ROWS_AT_ONCE = 4096                 # of a table, which is large in float32
SHRUNK = re.compile(r"llm\.model\.layers\..*_proj\.weight")   # the weights that `shrink` replaces
JOINT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))     # read the same input


class Numbers(NamedTuple):
    """A weight, (out, in), as whole numbers.

    numbers: (out, in) int8, or of 4 bits as torch packs them; scale: (out,) bfloat16, or (groups,
    out, 2) bfloat16: a scale, and what the middle number stands for; nibbles: of 4 bits, (out, in /
    2) uint8, two in a row side by side, as other kernels read them.
    """

    numbers: Tensor
    scale: Tensor
    nibbles: Tensor | None = None

    @property
    def is_packed(self) -> bool:
        """Of 4 bits."""
        return self.scale.dim() == 3

    def part(self, first: int, last: int) -> "Numbers":
        """Rows of the weight; of 4 bits in whole blocks, and nibbles only for all of them."""
        if last - first == len(self.numbers):
            return self
        scale = self.scale[:, first:last].contiguous() if self.is_packed else self.scale[first:last]
        return Numbers(self.numbers[first:last], scale)

    def product(self, rows: Tensor) -> Tensor:
        """(rows, in) -> (rows, out), both bfloat16."""
        if self.is_packed:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.numbers, GROUP, self.scale)
        return torch._weight_int8pack_mm(rows, self.numbers, self.scale)


def eight_bits(weight: Tensor) -> Numbers:
    """Rounds a weight, (out, in) of any type; rows of zeros stay zeros."""
    found = [_rounded(rows.float()) for rows in weight.split(ROWS_AT_ONCE)]
    return Numbers(*(torch.cat(each) for each in zip(*found, strict=True)))


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers and scales of some rows, (rows, in) float32."""
    scale = (weight.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    scale = scale.bfloat16()    # first, so that the whole numbers make up for its rounding
    numbers = (weight / scale.float()[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return numbers.to(torch.int8), scale


def four_bits(weight: Tensor) -> Numbers | None:
    """The numbers of 4 bits that a weight, (out, in) float32, was made from; None: it was not."""
    if len(weight) % BLOCK_ROWS or weight.shape[1] % GROUP:
        return None
    if _levels(weight[:SOME_ROWS]) is None or (found := _levels(weight)) is None:
        return None
    numbers, least, width = found
    scale = width.bfloat16()
    ends = torch.cat((scale, (least + MIDDLE * scale.float()).bfloat16()), 2)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.view(weight.shape), 1)
    pairs = numbers.view(len(weight), -1, 2).to(torch.uint8)
    nibbles = pairs[:, :, 0] | pairs[:, :, 1] << 4
    return Numbers(packed, ends.transpose(0, 1).contiguous(), nibbles)


def _levels(weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Of each group of a weight: its numbers, its least value, and the width of a level."""
    groups = weight.view(len(weight), -1, GROUP)
    least, most = groups.aminmax(dim=2, keepdim=True)
    width = (most - least) / (LEVELS - 1)
    exact = (groups - least) / width.clamp(min=torch.finfo(torch.float32).tiny)
    numbers = exact.round()
    is_near = float((exact - numbers).abs().max()) < CLOSE
    return (numbers.int(), least, width) if is_near else None


class Int8Linear(nn.Module):
    """A linear layer of whole numbers, with its LoRA layers; for inference alone.

    joint: the layer that makes this one's result and those of its neighbours, side by side;
    nibbles: as in Numbers, until a graph has taken them.
    """

    numbers: Tensor
    scale: Tensor
    bias: Tensor | None     # (out,) bfloat16
    down: Tensor | None     # (rank, in), of LoRA
    up: Tensor | None       # (out, rank)

    def __init__(self, weight: Numbers, bias: Tensor | None, change: Change | None) -> None:
        """bias: one of zeros is left out."""
        super().__init__()
        self.register_buffer("numbers", weight.numbers)
        self.register_buffer("scale", weight.scale)
        kept = bias.detach().bfloat16() if bias is not None and bool(bias.any()) else None
        self.register_buffer("bias", kept)
        self.register_buffer("down", None if change is None else change.down.float())
        self.register_buffer("up", None if change is None else change.up.float() * change.scale)
        self.joint: Sequence[Int8Linear] = ()
        self.nibbles = weight.nibbles

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out), of the same type."""
        rows = states.flatten(0, -2) if states.dim() > 2 else states
        made = Numbers(self.numbers, self.scale).product(rows.bfloat16())
        if self.bias is not None:
            made = made + self.bias
        made = made.to(states.dtype)
        if self.down is not None and self.up is not None:
            low = functional.linear(rows, self.down.to(states.dtype))
            made = torch.addmm(made, low, self.up.to(states.dtype).t())
        return made.unflatten(0, states.shape[:-1]) if states.dim() > 2 else made


def shrunk(layers: Sequence[nn.Linear], changes: Sequence[Change | None]) -> list[Int8Linear]:
    """Layers that read the same input, as whole numbers.

    changes: what LoRA layers made of each; they stay beside weights of 4 bits.
    """
    weights = [
        (layer.weight if change is None else change.base).detach().float()
        for layer, change in zip(layers, changes, strict=True)
    ]
    whole = torch.cat(weights) if len(weights) > 1 else weights[0]
    in_blocks = all(len(weight) % BLOCK_ROWS == 0 for weight in weights)
    numbers = (four_bits(whole) if in_blocks else None) or eight_bits(whole)
    if not numbers.is_packed and any(changes):
        merged = [layer.weight.detach().float() for layer in layers]
        numbers, changes = eight_bits(torch.cat(merged)), [None] * len(layers)
    made, first = [], 0
    for layer, change in zip(layers, changes, strict=True):
        last = first + len(layer.weight)
        made.append(Int8Linear(numbers.part(first, last), layer.bias, change))
        first = last
    if len(layers) > 1:
        # All have one, or none.
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        bias = torch.cat(biases) if biases else None
        joint = Int8Linear(numbers, bias, _joint_change(layers, changes))
        for one in made:
            one.joint = (joint,)    # in a tuple: no module of this one's
    return made


def _joint_change(layers: Sequence[nn.Linear], changes: Sequence[Change | None]) -> Change | None:
    """The LoRA layers of several as those of one layer."""
    scale = next((change.scale for change in changes if change is not None), None)
    if scale is None:
        return None
    downs = [layer.weight[:0] if one is None else one.down
             for layer, one in zip(layers, changes, strict=True)]  # fmt: skip
    ups = [layer.weight[:, :0] if one is None else one.up
           for layer, one in zip(layers, changes, strict=True)]  # fmt: skip
    low = [one.detach().float() for one in downs]
    wide = torch.block_diag(*(one.detach().float() for one in ups))
    return Change(low[0], torch.cat(low), wide, scale)


def _fits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features % WIDTHS == 0


def shrink_each(module: nn.Module, but: tuple[str, ...] = ()) -> None:
    """Put layers of 8 bits in place of all linear ones that fit. but: ends of names that stay."""
    for name, part in list(module.named_modules()):
        for key, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear) and _fits(layer) and not f"{name}.{key}".endswith(but):
                setattr(part, key, shrunk([layer], [None])[0])


def shrink(model: EChatModel, changes: Mapping[str, Change] | None = None) -> None:
    """Put layers of whole numbers in place of those of the LLM's blocks, one by one.

    One whose input is no multiple of 16 wide stays as it is.

    model: on a CPU, LoRA layers merged; changes: what these were, by the names of the layers.
    """
    known = changes or {}
    for name, part in list(model.llm.model.layers.named_modules()):
        own = {key: one for key, one in part.named_children() if _fits(one)}
        for keys in (*JOINT, *([key] for key in own if not any(key in one for one in JOINT))):
            if not all(key in own for key in keys):
                continue
            found = [known.get(f"llm.model.layers.{name}.{key}") for key in keys]
            for key, made in zip(keys, shrunk([own[key] for key in keys], found), strict=True):
                setattr(part, key, made)
    head: Any = model.llm.lm_head
    if head.weight.dtype == torch.float32:
        model.text_head = Int8Linear(eight_bits(head.weight.detach()), None, None)
