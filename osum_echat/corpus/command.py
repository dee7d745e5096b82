"""How the doors of this room end: a result in one line, or what is wrong in one line."""

import sys
from argparse import Namespace
from collections.abc import Callable

from osum_echat import logs
from osum_echat.errors import OsumError

BAD_INPUT, STOPPED = 2, 130


def run(name: str, work: Callable[[Namespace], object], arguments: Namespace) -> int:
    """Do the work and print what comes out. Returns 0; 2 for what the user can put right; 130."""
    logs.setup()
    try:
        outcome = work(arguments)
    except OsumError as error:
        sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: stopped; the same command goes on from here\n")
        return STOPPED
    if outcome is not None:
        logs.out(str(outcome))
    return 0
