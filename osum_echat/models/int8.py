"""Weights of the LLM's blocks kept as 8-bit integers: half the memory of bfloat16, on a CPU.

Each row of a weight is a scale and whole numbers from -127 to 127; the products are those of
torch's own kernel, in bfloat16. Tables, heads, encoder and adapter stay as they are.
"""

import torch
from torch import Tensor, nn

from osum_echat.models.echat import EChatModel

LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer of int8 weights; for inference alone."""

    weight: Tensor  # (out, in) int8
    scale: Tensor  # (out,) bfloat16: what a row's numbers are multiplied by
    bias: Tensor | None  # (out,) bfloat16

    def __init__(self, layer: nn.Linear) -> None:
        """Rounds the layer's weights; rows of zeros stay zeros."""
        super().__init__()
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale.bfloat16()  # first, so that the whole numbers make up for its rounding
        numbers = (weight / scale.float()[:, None]).round().clamp(-LARGEST, LARGEST)
        self.register_buffer("weight", numbers.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().bfloat16())

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) -> (..., out), in bfloat16."""
        rows = states.flatten(0, -2).bfloat16()
        made = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        if self.bias is not None:
            made = made + self.bias
        return made.unflatten(0, states.shape[:-1])


def shrink(model: EChatModel) -> None:
    """Put int8 layers in place of those of the LLM's blocks, one by one.

    model: in bfloat16, on a CPU; LoRA layers must have been merged.
    """
    for part in list(model.llm.model.layers.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(part, name, Int8Linear(layer))
