"""Which processor runs the model. The only file that knows about Ascend (npu)."""
import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch

from osum_echat.errors import InputError

NAMES = ("auto", "cuda", "npu", "cpu")


def _has_npu() -> bool:
    if find_spec("torch_npu") is None:
        return False
    import torch_npu  # type: ignore[import-not-found]

    return bool(torch_npu.npu.is_available())


def pick(name: str = "auto") -> torch.device:
    """The device of that name, this process's own one where there are several.

    name: auto (cuda, else npu, else cpu), or a name with or without a number such as cuda:1.
    """
    kind, _, number = name.partition(":")
    if kind not in NAMES or (number and (not number.isdigit() or kind in ("auto", "cpu"))):
        raise InputError(f"device {name!r}: choose one of {', '.join(NAMES)} "
                         "(cuda:1 or npu:1 for one card)")
    index = int(number) if number else int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise InputError("device 'cuda': no CUDA device is visible here; use --device cpu")
        return torch.device("cuda", index)
    if kind == "npu" or (kind == "auto" and _has_npu()):
        if not _has_npu():
            raise InputError("device 'npu': torch_npu is not installed or sees no card; "
                             "see requirements-npu.txt, or use --device cpu")
        return torch.device("npu", index)
    return torch.device("cpu")


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Mixed precision on that device; dtype None or float32 switches it off."""
    if dtype is None or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given (for timing)."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def dist_backend(device: torch.device) -> str:
    """The name of the torch.distributed backend for that device."""
    return {"cuda": "nccl", "npu": "hccl"}.get(device.type, "gloo")


def free_memory_bytes() -> int | None:
    """Main memory that programs may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else None
