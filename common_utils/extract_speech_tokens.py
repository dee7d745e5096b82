"""Speech tokens for a raw list: python common_utils/extract_speech_tokens.py --help."""

import sys
from collections.abc import Sequence

from osum_echat.corpus import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can put right, told in one line."""
    arguments = options.extract_speech_tokens().parse_args(argv)
    from osum_echat.corpus import speech_tokens

    return command.run("extract_speech_tokens.py", speech_tokens.run_arguments, arguments)


if __name__ == "__main__":
    sys.exit(main())
