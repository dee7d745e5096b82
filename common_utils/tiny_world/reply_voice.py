"""The assistant's voice: a Piper voice run directly by onnxruntime, in four speaking styles.

As a command it speaks the training set of the tiny token2wav: every sentence of replies in every
style it is used in, or what users say.

    python -m common_utils.tiny_world.reply_voice --out DIR [--sentences FILE] [--minutes N]
"""

import ctypes
import json
import os
import random
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import soundfile
import soxr
from numpy.typing import NDArray

from common_utils.command import command
from common_utils.tiny_world.lists import read_jsonl, said_by_users
from common_utils.tiny_world.world import load_world
from osum_echat.errors import InputError
from osum_echat.logs import logger, progress

SAMPLE_RATE_HZ = 22_050
VOICE_FILE = "en_US-joe-medium.onnx"
LIBRARY_FILE = "libespeak-ng.so"
DATA_DIRECTORY = "espeak-ng-data"
LEVEL_RMS = 0.06                     # of the spoken parts, before the style's gain
PEAK = 0.95
FRAME_SAMPLES = 256                  # 11.6 ms: the grain of trimming and of level measuring
QUIET = 0.03                         # of the loud level: below it a frame counts as silence
EDGE_S = 0.05                        # silence kept on either side

ESPEAK_SYNCHRONOUS = 2               # AUDIO_OUTPUT_SYNCHRONOUS: no audio device is opened
ESPEAK_UTF8 = 1
ESPEAK_IPA = 2

LIST_FILE = "reply.list"

Wave = NDArray[np.float32]
Pair = tuple[str, str]               # sentence, style

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Style:
    """How a reply is spoken: times longer, times higher, louder by decibels."""

    length: float
    pitch: float
    gain_db: float
    liveliness: float = 0.667        # Piper's noise scale: more of it varies the melody more


STYLES = {
    "CALM": Style(length=1.0, pitch=1.0, gain_db=0.0),
    "CHEERFUL": Style(length=0.92, pitch=1.15, gain_db=4.0, liveliness=0.8),
    "SOFT": Style(length=1.25, pitch=0.90, gain_db=-8.0, liveliness=0.5),
    "BRISK": Style(length=0.82, pitch=1.05, gain_db=3.0),
}


class Phonemes:
    """International phonetic spelling of English, by the espeak-ng library through ctypes."""

    def __init__(self, library: Path, data: Path, voice: str) -> None:
        self._espeak = ctypes.CDLL(str(library))
        self._espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._voice = voice.encode()
        rate = self._espeak.espeak_Initialize(ESPEAK_SYNCHRONOUS, 0, str(data.parent).encode(), 0)
        if rate <= 0:
            raise InputError(f"{data}: espeak-ng does not start; unpack its package anew")

    def __call__(self, text: str) -> str:
        """The phonemes of `text`, punctuation kept: it steers the voice's melody."""
        self._espeak.espeak_SetVoiceByName(self._voice)   # others may have set another voice
        parts = re.findall(r"([^.,;:!?]+)([.,;:!?]*)", text)
        spelled = [self._clause(words) + marks[:1] for words, marks in parts if words.strip()]
        return " ".join(spelled)

    def _clause(self, words: str) -> str:
        source = ctypes.create_string_buffer(words.strip().encode())
        place = ctypes.c_void_p(ctypes.addressof(source))
        heard = []
        while place.value:
            part = self._espeak.espeak_TextToPhonemes(ctypes.byref(place), ESPEAK_UTF8, ESPEAK_IPA)
            heard.append((part or b"").decode().strip())
        return " ".join(part for part in heard if part)


def one_thread(graph: str | bytes) -> onnxruntime.InferenceSession:
    """An ONNX graph, or the file of one, on one thread of the CPU; of its warnings none is told."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class ReplyVoice:
    """Speaks one sentence in one style. `assets`: the directory of the unpacked packages."""

    def __init__(self, assets: Path) -> None:
        voice = _found(assets, VOICE_FILE)
        described = json.loads(Path(f"{voice}.json").read_text(encoding="utf-8"))
        self._ids: dict[str, list[int]] = described["phoneme_id_map"]
        self._variation = float(described["inference"]["noise_w"])
        self._phonemes = Phonemes(
            _found(assets, LIBRARY_FILE), _found(assets, DATA_DIRECTORY),
            described["espeak"]["voice"],
        )
        self._session = one_thread(str(voice))

    def say(self, sentence: str, style: str) -> Wave:
        """`sentence` spoken in `style`: (samples,) at 22050 Hz, silence trimmed at both ends."""
        if style not in STYLES:
            raise InputError(f"style {style!r}: not one of {', '.join(STYLES)}")
        manner = STYLES[style]
        ids = self._phoneme_ids(sentence)
        scales = [manner.liveliness, manner.length * manner.pitch, self._variation]
        spoken = self._session.run(None, {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array(scales, np.float32),
        })[0]
        wave = np.asarray(spoken, np.float32).reshape(-1)
        # Played faster by the pitch factor: the length above was stretched by as much.
        wave = soxr.resample(wave, SAMPLE_RATE_HZ * manner.pitch, SAMPLE_RATE_HZ)
        wave = levelled(trimmed(wave), manner.gain_db)
        fade = np.linspace(0, 1, SAMPLE_RATE_HZ // 100, dtype=np.float32)[: len(wave)]   # 10 ms
        wave[: len(fade)] *= fade
        wave[len(wave) - len(fade) :] *= fade[::-1]
        return wave

    def _phoneme_ids(self, sentence: str) -> list[int]:
        pad = self._ids["_"]
        ids = self._ids["^"] + pad
        for phoneme in self._phonemes(sentence):
            if phoneme in self._ids:
                ids = ids + self._ids[phoneme] + pad
        if len(ids) == 2:
            raise InputError(f"sentence {sentence!r}: nothing in it can be spoken")
        return ids + self._ids["$"]


def trimmed(wave: Wave) -> Wave:
    """`wave` (samples,) without the silence at its ends, but for 50 ms on either side."""
    loud = np.flatnonzero(_frame_rms(wave) > QUIET * _spoken_rms(wave))
    if not len(loud):
        return wave
    edge = round(EDGE_S * SAMPLE_RATE_HZ)
    start = max(0, int(loud[0]) * FRAME_SAMPLES - edge)
    stop = min(len(wave), (int(loud[-1]) + 1) * FRAME_SAMPLES + edge)
    return wave[start:stop]


def join(parts: Sequence[Wave], gap_s: float = 0.18) -> Wave:
    """The parts, each (samples,) at 22050 Hz, one after another with silence between."""
    gap = np.zeros(round(gap_s * SAMPLE_RATE_HZ), np.float32)
    pieces: list[Wave] = []
    for part in parts:
        pieces += [gap, part] if pieces else [part]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def levelled(wave: Wave, gain_db: float) -> Wave:
    """`wave` at the common level plus `gain_db`, without clipping."""
    wanted = LEVEL_RMS * 10 ** (gain_db / 20)
    peak = float(np.abs(wave).max(initial=1e-9))
    return wave * np.float32(min(wanted / _spoken_rms(wave), PEAK / peak))


def _frame_rms(wave: Wave) -> NDArray[np.float64]:
    frames = wave[: len(wave) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return np.sqrt(np.mean(frames.astype(np.float64) ** 2, axis=1))


def _spoken_rms(wave: Wave) -> float:
    """Root mean square over the louder half of the frames."""
    levels = np.sort(_frame_rms(wave))
    return float(np.sqrt(np.mean(levels[len(levels) // 2 :] ** 2)) + 1e-9) if len(levels) else 1e-9


def write_wav(path: Path, wave: Wave, rate_hz: int) -> None:
    """Whole or not at all, also where several processes write the same file."""
    draft = path.with_suffix(f".{os.getpid()}.draft")
    soundfile.write(draft, wave, rate_hz, subtype="PCM_16", format="WAV")
    draft.replace(path)


def file_name(style: str, *sentences: str) -> str:
    """What the wav of a sentence, or of several, in a style is called, without its ending."""
    return sha256(f"{style} {' '.join(sentences)}".encode()).hexdigest()[:12]


def _found(assets: Path, name: str) -> Path:
    hits = sorted(assets.rglob(name))
    if not hits:
        raise InputError(f"{assets}: holds no {name}; fetch the packages with tiny_world/assets.py")
    return hits[0]


def speak(pairs: Iterable[Pair], voice: ReplyVoice, out: Path, minutes: float) -> float:
    """Write the wavs that are missing and the list; returns the minutes of audio."""
    (out / "wav").mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    with (out / LIST_FILE).open("w", encoding="utf-8") as rows:
        for sentence, style in progress(pairs, "speaking"):
            name = file_name(style, sentence)
            path = out / "wav" / f"{name}.wav"
            if not path.exists():
                write_wav(path, voice.say(sentence, style), SAMPLE_RATE_HZ)
            row = {"key": name, "wav": f"wav/{name}.wav", "txt": sentence, "style": style}
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            seconds += soundfile.info(path).duration
            if seconds > 60 * minutes:
                log.info("stopped at %.0f minutes", minutes)
                break
    return seconds / 60


def make(
    out: Path, assets: Path = Path("build/assets"), sentences: Path | None = None,
    styles: Literal[1, 2, 3, 4] = 4, minutes: float = 60.0, seed: int = 7,
) -> None:  # fmt: skip
    """Speak the replies of the tiny world in every style, or what users say in some of them."""
    rng = random.Random(seed)
    if sentences is None:
        pairs = sorted(load_world().all_reply_sentences())
    else:
        said = sorted(said_by_users(read_jsonl(sentences)))
        pairs = [(line, style) for line in said for style in rng.sample([*STYLES], styles)]
    rng.shuffle(pairs)
    made = speak(pairs, ReplyVoice(assets), out, minutes)
    log.info("%s: %.1f minutes in all", out / LIST_FILE, made)


main = command(
    make, out=f"gets wav/ and {LIST_FILE}", minutes="of audio, at most", sentences="exchanges.jsonl"
    ", for what users say there; default: the replies of the tiny world",
    styles="of --sentences: each in so many styles, drawn; default: in all",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
