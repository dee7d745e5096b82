"""torchrun as train.sh calls it: time to save after SIGTERM, and one line where a process fails.

python -m osum_echat.training.launch --standalone --nproc_per_node 2 train.py --config FILE
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

SAVE_S = 600  # that processes have for a last checkpoint after SIGTERM; torchrun's own is 30


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, what the first process that failed has returned, or 128 + its signal or ours."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_S))
    logging.disable(logging.ERROR)  # of torchrun, in this process alone
    try:
        torchrun(list(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _told(rank, failure.exitcode)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def _told(rank: int, code: int) -> int:
    """Say how a process ended, and turn it into an exit code of a shell."""
    if code >= 0:
        sys.stderr.write(f"launch: process {rank} ended with {code}; its own words are above\n")
        return code
    name = signal.Signals(-code).name
    reason = "; the machine's memory may have run out" if name == "SIGKILL" else ""
    sys.stderr.write(f"launch: process {rank} was stopped by {name}{reason}\n")
    return 128 - code


if __name__ == "__main__":
    sys.exit(main())
