"""Kaldi data folders to raw lists: python common_utils/make_raw_from_kaldi.py --help."""

import sys
from collections.abc import Sequence

from osum_echat.corpus import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = options.make_raw_from_kaldi().parse_args(argv)
    from osum_echat.corpus import kaldi

    return command.run("make_raw_from_kaldi.py", kaldi.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
