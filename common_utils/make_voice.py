"""Make a voice to speak in from a recording, once: a small file for --voice. See --help."""

import sys
from collections.abc import Sequence
from pathlib import Path

from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.files import check_apart
from osum_echat.paths import TINY, model_source

SUFFIX = ".safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for input that cannot be used, with one line on standard error."""
    made = cli.OneLineParser(prog="make_voice.py", description=__doc__)
    add = made.add_argument
    add("wav", type=Path, help="a recording of one speaker, up to 30 s, of any sample rate")
    add("--model", type=model_source, default=str(TINY), metavar="SOURCE", help="the "
        "CosyVoice directory or its .tar, a token2wav or model directory, or hub:OWNER/NAME[/FILE] "
        "(default: the tiny model)")
    add("--out", type=Path, default=Path(f"voice{SUFFIX}"), metavar="FILE",
        help=f"default: voice{SUFFIX}")
    cli.add_threads(made)
    chosen = made.parse_args(argv)

    def work() -> None:
        from osum_echat.inference.load import token2wav_place
        from osum_echat.token2wav.model import measure_voice

        check_apart(chosen.out, [chosen.wav])
        if chosen.out.suffix != SUFFIX:
            raise InputError(f"--out {chosen.out}: a voice is no sound; name it NAME{SUFFIX}")
        voice = measure_voice(token2wav_place(chosen.model), chosen.wav)
        voice.save(chosen.out)
        logs.out(
            f"{chosen.out}: {voice.tokens.shape[1]} tokens, {voice.mel.shape[1]} frames, "
            f"{chosen.out.stat().st_size / 1000:.0f} kB"
        )

    return cli.run("make_voice.py", work)


if __name__ == "__main__":
    sys.exit(main())
