"""Make a voice to speak in from a recording, once: a small file for --voice. See --help."""

import sys
from pathlib import Path

from common_utils.command import command
from osum_echat.errors import InputError
from osum_echat.files import check_apart
from osum_echat.paths import TINY, model_source

SUFFIX = ".safetensors"


def make(wav: Path, /, model: str = str(TINY), out: Path = Path(f"voice{SUFFIX}")) -> str:
    """Measure the recording and save the voice; what it holds."""
    from osum_echat.inference.load import token2wav_place
    from osum_echat.token2wav.model import measure_voice

    check_apart(out, [wav])
    if out.suffix != SUFFIX:
        raise InputError(f"--out {out}: a voice is no sound; name it NAME{SUFFIX}")
    voice = measure_voice(token2wav_place(model_source(model)), wav)
    voice.save(out)
    return (f"{out}: {voice.tokens.shape[1]} tokens, {voice.mel.shape[1]} frames, "
            f"{out.stat().st_size / 1000:.0f} kB")  # fmt: skip


main = command(
    make, wav="a recording of one speaker, up to 30 s, of any sample rate", out="the new voice",
    model="the CosyVoice directory or its .tar, a token2wav or model directory, or "
    "hub:OWNER/NAME[/FILE] (default: the tiny model)",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
