"""Which processor runs the model. The only file that knows about Ascend (npu)."""
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch

from osum_echat import logs
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
        return _numbered("cuda", index, torch.cuda.device_count())
    if kind == "npu" or (kind == "auto" and _has_npu()):
        if not _has_npu():
            raise InputError("device 'npu': torch_npu is not installed or sees no card; "
                             "see requirements-npu.txt, or use --device cpu")
        return _numbered("npu", index, count("npu"))
    return torch.device("cpu")


def _numbered(kind: str, index: int, there: int) -> torch.device:
    """That card, made the current one of this process."""
    if index >= there:
        raise InputError(f"device '{kind}:{index}': {there} visible here, numbered from 0; "
                         "start as many processes as there are cards, or fewer")
    device = torch.device(kind, index)
    getattr(torch, kind).set_device(device)
    return device


def count(name: str = "auto") -> int:
    """Processes that a training on this machine may start: one for each card, 1 on a CPU.

    A numbered device such as cuda:1 counts as one.
    """
    kind, _, number = name.partition(":")
    if number:
        return 1
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    if kind in ("auto", "npu") and _has_npu():
        import torch_npu

        return int(torch_npu.npu.device_count())
    return 1


def random_state(device: torch.device) -> torch.Tensor:
    """The state of all random numbers of this process, (bytes,), the device's behind the CPU's."""
    own = torch.get_rng_state()
    if device.type == "cpu":
        return own
    return torch.cat((own, getattr(torch, device.type).get_rng_state(device).cpu()))


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Take back what `random_state` gave."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].cpu())
    if device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[size:].cpu(), device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of its card, or of the machine on a CPU."""
    if device.type != "cpu":
        return int(getattr(torch, device.type).max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kilobytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that the device's memory, or the machine's, was not enough."""
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in words or "can't allocate memory" in words)
    )


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


if __name__ == "__main__":  # for train.sh
    logs.out(str(count(*sys.argv[1:2])))
