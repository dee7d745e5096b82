"""The web page: talk to the model in a browser. See --help."""

import sys
from collections.abc import Sequence

from osum_echat import cli
from osum_echat.serving import app


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; 2 for options that cannot be used, with one line on standard error."""
    return cli.run("infer_gradio.py", lambda: app.run(app.parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
