"""The web page: talk to the model in a browser. See --help."""

import sys
from collections.abc import Sequence

from osum_echat import logs
from osum_echat.errors import OsumError
from osum_echat.serving import web

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; 2 for options that cannot be used, with one line on standard error."""
    logs.setup()
    try:
        web.run(web.parser().parse_args(argv))
    except OsumError as error:
        sys.stderr.write(f"infer_gradio.py: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
