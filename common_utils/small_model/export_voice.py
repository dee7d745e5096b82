"""The voice of the small model: a speaker vector for each style; the trained parts together.

    python -m common_utils.small_model.export_voice styles --out build/voice/styles
    python -m common_utils.small_model.export_voice parts --voice build/voice --out DIR
    python -m common_utils.small_model.export_voice tokenizer --voice DIR --whisper DIR --out ONNX

`parts` writes, in half precision, OUT/talker (a model directory) and OUT/token2wav, with a voice
for each style: its vector and a recording of a few seconds. `tokenizer` makes the speech tokenizer
that these codes come from out of Whisper base and what DIR/units.safetensors keeps: it is for
measuring voices and lists, and replying does without it.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common_utils.command import command
from common_utils.small_model.hibari import STYLES
from common_utils.small_model.speech_rows import VOICE
from common_utils.small_model.thinker import TOKENIZER_FILES
from common_utils.tiny_world.assemble import write_halves
from common_utils.token2wav_recipe.runs import VoiceRow, read_lists
from common_utils.token2wav_recipe.train_flow import speech_tokens
from common_utils.token2wav_recipe.train_tokenizer import export_units, with_learnt
from osum_echat import audio
from osum_echat.errors import DataError
from osum_echat.inference.talker import ENGLISH, Talker
from osum_echat.models import checkpoint
from osum_echat.settings import read_mapping
from osum_echat.token2wav.flow import frames_for
from osum_echat.token2wav.model import VOICE_FILE, Token2Wav
from osum_echat.token2wav.voice import (
    SAMPLE_RATE_HZ,
    SPEAKER_WIDTH,
    SpeechTokenizer,
    VoicePrompt,
    prompt_mel,
)

SEED = 11
PROMPT_TOKENS = (60, 90)                # of a style's recording: 2.4 to 3.6 s
USUAL_STYLE = "CALM"
UNITS_FILE = "units.safetensors"        # what the speech tokenizer learnt beside the Whisper


def style_vectors() -> dict[str, Tensor]:
    """A vector of length 1 for each style, at right angles to the others: (1, numbers) each."""
    generator = torch.Generator().manual_seed(SEED)
    directions, _ = torch.linalg.qr(torch.randn(SPEAKER_WIDTH, len(STYLES), generator=generator))
    return {style: directions[:, number][None].contiguous() for number, style in enumerate(STYLES)}


def write_styles(out: Path) -> None:
    """Voices without a recording, OUT/STYLE.safetensors: what train_flow takes as `voices`."""
    out.mkdir(parents=True, exist_ok=True)
    for style, vector in style_vectors().items():
        VoicePrompt.absent(vector).save(out / f"{style}.safetensors")


def style_voice(rows: Sequence[VoiceRow], style: str) -> VoicePrompt:
    """The voice in a style: its vector, and the first recording of a fitting length."""
    least, most = PROMPT_TOKENS
    for row in rows:
        codes = speech_tokens(row)
        if row.voice != style or not least <= len(codes) <= most:
            continue
        mel = prompt_mel(row.load(SAMPLE_RATE_HZ))
        frames = min(mel.shape[1], frames_for(len(codes), 25))
        return VoicePrompt(torch.tensor([codes]), mel[:, :frames], style_vectors()[style])
    raise DataError(f"no recording in the style {style} of {least} to {most} speech tokens")


def write_talker(source: Path, out: Path) -> None:
    """A talker's directory from what train.py left in `final`."""
    raw = read_mapping(source / checkpoint.SETTINGS_FILE)
    notes = {"thinking": raw["thinking"], "template": raw["template"], "g2p": ENGLISH,
             "style": USUAL_STYLE}  # fmt: skip
    checkpoint.save(out, checkpoint.load(source), dtype=torch.float16, notes=notes)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, out / name)


def write_token2wav(voice: Path, out: Path) -> Token2Wav:
    """Flow, vocoder, what the units learnt, and a voice for each style; read back to be sure."""
    write_halves({part: voice / part for part in ("vocoder", "flow")}, out)
    shutil.copyfile(voice / UNITS_FILE, out / UNITS_FILE)
    rows = read_lists([voice / VOICE])
    for style in STYLES:
        made = style_voice(rows, style)
        made.save(out / f"voice_{style}.safetensors")
        if style == USUAL_STYLE:
            made.save(out / VOICE_FILE)
    return Token2Wav.load(out)


def export(
    what: Literal["styles", "parts", "tokenizer"], /, out: Path, voice: Path = Path("build/voice"),
    whisper: Path = Path("build/parts/whisper_base"),
) -> None:  # fmt: skip
    """Write OUT."""
    if what == "styles":
        write_styles(out)
    elif what == "parts":
        made = write_token2wav(voice, out / "token2wav")
        write_talker(voice / "talker" / "final", out / "talker")
        Talker.load(out / "talker", made.settings.flow.codes, torch.device("cpu"))  # do they fit?
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        export_units(with_learnt(whisper, voice / UNITS_FILE), out)
        SpeechTokenizer(out)(torch.zeros(audio.SAMPLE_RATE_HZ))     # tried on a second of silence


main = command(export, voice="talker, flow, vocoder, units and voice.list",
               whisper="with model.safetensors")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
