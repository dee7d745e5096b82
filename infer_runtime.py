"""Ask the model once and print what comes back: see --help."""

import sys
from collections.abc import Sequence

from osum_echat import logs, runtime
from osum_echat.errors import OsumError

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for input that cannot be used, with one line on standard error."""
    logs.setup()
    try:
        runtime.run(runtime.parser().parse_args(argv))
    except OsumError as error:
        sys.stderr.write(f"infer_runtime.py: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
