"""Public corpora as they are unpacked to raw lists: python -m common_utils.make_raw_from_public -h.

    python -m common_utils.make_raw_from_public librispeech LibriSpeech --part test-clean \
        --out data/librispeech_test_clean.list
"""

import sys
from collections.abc import Sequence

from common_utils.public_corpora import making
from osum_echat import cli, logs


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = making.parser().parse_args(argv)
    return cli.run("make_raw_from_public.py", lambda: logs.out(making.run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
