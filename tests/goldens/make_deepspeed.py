"""Make small checkpoints by DeepSpeed itself, and the weights that its own script reads from them.

`torchrun --nproc_per_node 2 tests/goldens/make_deepspeed.py STAGE OUT`, for stage 0, 2 and 3.
"""

import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn


class Small(nn.Module):
    """Sizes that divide by nothing, a frozen layer, a shared weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 5), nn.Linear(5, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.shared = nn.Linear(7, 5)
        self.shared.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, values: Tensor) -> Tensor:
        return self.frozen(self.second(self.first(values) + self.shared(values))).pow(2).mean()


def main(stage: int, out: Path) -> None:
    __compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    torch.manual_seed(0)
    model = Small()
    deepspeed.init_distributed("gloo")
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[part for part in model.parameters() if part.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": 2,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
            "bf16": {"enabled": stage > 0},
            "zero_optimization": {"stage": stage},
        },
    )
    for _ in range(3):
        values = torch.randn(2, 7, dtype=torch.bfloat16 if stage else torch.float32)
        engine.backward(engine(values))
        engine.step()
    engine.save_checkpoint(out, tag="step_3")
    if torch.distributed.get_rank():
        return
    whole = model.state_dict() if not stage else get_fp32_state_dict_from_zero_checkpoint(str(out))
    save_file({name: one.clone() for name, one in whole.items()}, out / "expected.safetensors")
    for script in out.glob("*.py"):
        script.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
