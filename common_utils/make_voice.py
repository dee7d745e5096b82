"""Make a voice to speak in from a recording, once: a small file for --voice. See --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import OsumError
from osum_echat.paths import TINY, model_source

BAD_INPUT = 2


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="make_voice.py", description=__doc__)
    add = made.add_argument
    add("wav", type=Path, help="a recording of one speaker, up to 30 s, of any sample rate")
    add("--model", type=model_source, default=str(TINY), metavar="SOURCE", help="the "
        "CosyVoice directory or its .tar, a token2wav or model directory, or hub:OWNER/NAME[/FILE] "
        "(default: the tiny model)")
    add("--out", type=Path, default=Path("voice.safetensors"), metavar="FILE",
        help="default: voice.safetensors")
    return made.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for input that cannot be used, with one line on standard error."""
    chosen = _arguments(argv)
    logs.setup()
    from osum_echat.inference.load import token2wav_place
    from osum_echat.token2wav.model import measure_voice

    try:
        voice = measure_voice(token2wav_place(chosen.model), chosen.wav)
        voice.save(chosen.out)
    except OsumError as error:
        sys.stderr.write(f"make_voice.py: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    logs.out(
        f"{chosen.out}: {voice.tokens.shape[1]} tokens, {voice.mel.shape[1]} frames, "
        f"{chosen.out.stat().st_size / 1000:.0f} kB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
