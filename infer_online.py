"""Talk to the model live: a real-time server and its page. See --help."""

import sys
from collections.abc import Sequence

from osum_echat import cli
from osum_echat.serving import online


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; 2 for options that cannot be used, with one line on standard error."""
    return cli.run("infer_online.py", lambda: online.run(online.parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
