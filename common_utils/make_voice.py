"""Make a voice to speak in from a recording, once: a small file for --voice. See --help."""

import sys
from collections.abc import Sequence
from pathlib import Path

from common_utils.command import called, parser_of
from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.files import check_apart
from osum_echat.paths import TINY, model_source

SUFFIX = ".safetensors"
OPTIONS = {
    "wav": "a recording of one speaker, up to 30 s, of any sample rate",
    "model": "the CosyVoice directory or its .tar, a token2wav or model directory, or "
    "hub:OWNER/NAME[/FILE] (default: the tiny model)", "out": f"default: voice{SUFFIX}",
}  # fmt: skip


def make(wav: Path, /, model: str = str(TINY), out: Path = Path(f"voice{SUFFIX}")) -> None:
    """Measure the recording and save the voice."""
    from osum_echat.inference.load import token2wav_place
    from osum_echat.token2wav.model import measure_voice

    check_apart(out, [wav])
    if out.suffix != SUFFIX:
        raise InputError(f"--out {out}: a voice is no sound; name it NAME{SUFFIX}")
    voice = measure_voice(token2wav_place(model_source(model)), wav)
    voice.save(out)
    logs.out(f"{out}: {voice.tokens.shape[1]} tokens, {voice.mel.shape[1]} frames, "
             f"{out.stat().st_size / 1000:.0f} kB")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for input that cannot be used, with one line on standard error."""
    parser = parser_of(make, OPTIONS)
    cli.add_threads(parser)
    chosen = parser.parse_args(argv)
    return cli.run("make_voice.py", lambda: called(make, chosen))


if __name__ == "__main__":
    sys.exit(main())
