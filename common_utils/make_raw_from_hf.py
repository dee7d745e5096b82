"""Hugging Face audio data sets to raw lists: python common_utils/make_raw_from_hf.py --help."""

import sys
from collections.abc import Sequence

from osum_echat.corpus import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = options.make_raw_from_hf().parse_args(argv)
    from osum_echat.corpus import hugging_face

    return command.run("make_raw_from_hf.py", hugging_face.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
