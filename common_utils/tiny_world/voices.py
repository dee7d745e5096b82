"""The people of the tiny world: who they are, and the engines that speak for them.

espeak-ng (most voices) runs in this process through ctypes; Kokoro (a few natural ones) through
onnxruntime. A voice's vocal tract is lengthened or shortened by playing its speech slower or
faster; the engine speaks as much faster or slower and lower or higher to make up for it.
"""

import _ctypes
import ctypes
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from common_utils.tiny_world.assets import AssetPaths
from common_utils.tiny_world.reply_voice import Phonemes, one_thread
from osum_echat.errors import InputError
from osum_echat.settings import read_mapping

Wave = NDArray[np.floating[Any]]        # (samples,); float32 where it leaves a function

ESPEAK_RATE_HZ = 22_050
KOKORO_RATE_HZ = 24_000
STYLE_WIDTH = 256
ESPEAK, KOKORO = "espeak", "kokoro"

AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
DONT_EXIT = 0x8000                                  # tell of missing data, do not end the process
LONGEST_HOME = 140                                  # bytes; espeak keeps the path in 160
VARIANT = "speaker"                                 # file of every voice: espeak keeps 40 bytes of
                                                    # accent and variant, and dies of more
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4             # espeak_PARAMETER
RATE_WPM = 160
SLOWEST_WPM, FASTEST_WPM = 80, 400
# espeak's pitch knob, 0 to 99: measured f0 against that at 50.
KNOB = (0, 12, 25, 37, 50, 62, 75, 87, 99)
KNOB_FACTOR = (0.70, 0.745, 0.81, 0.89, 1.0, 1.12, 1.28, 1.46, 1.66)
# How far a `pitch` line's two bounds lie from the middle, and that middle against the f0 heard.
LOW_BOUND, HIGH_BOUND = 0.83, 1.19

Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker. formants: resonances against those of a middle-sized man (1.0)."""

    name: str
    engine: str
    variant: str                # espeak: "en-us+m3"; Kokoro: "style*share+style*share"
    age: str
    gender: str
    f0_hz: float                # median of plain speech
    formants: float
    rate: float = 1.0           # against the engine's plain rate
    breath: float = 0.0         # noise that follows the voice, as a share of its level
    tremor: float = 0.0         # depth of the 4 to 6 Hz shake of pitch and loudness, 0 to 1
    tilt_db: float = 0.0        # an octave

    @property
    def cell(self) -> tuple[str, str]:
        return self.age, self.gender


@dataclass(frozen=True, slots=True)
class Spoken:
    """What an engine said. `speed`: to be played this many times faster by whoever takes it."""

    samples: Wave
    rate_hz: int
    speed: float


@dataclass(frozen=True, slots=True)
class Manner:
    """How an engine is asked to speak, all against the voice's plain speech."""

    rate: float = 1.0
    pitch: float = 1.0
    range: float = 1.0


_TABLE = read_mapping(Path(__file__).with_suffix(".yaml"))
CELLS: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {
    tuple(cell.split()): _TABLE["usual"] | one for cell, one in _TABLE["cells"].items()
}
# How a cell's voices walk between its bounds: so many of so many equal parts a voice.
PACES = {"f0_hz": (3, 7), "formants": (2, 5), "rate": (1, 4), "breath": (2, 3), "tremor": (1, 3),
         "tilt_db": (4, 9)}  # fmt: skip
WOMEN = frozenset(" ".join(one["FEMALE"] for one in _TABLE["espeak"].values()).split())
WOMEN_FORMANTS = 1.15
KOKORO_STYLES: dict[str, tuple[float, float]] = _TABLE["kokoro_styles"]


def _trait(cell: tuple[str, str], name: str, index: int, shift: int) -> float:
    """Of the index-th voice of a cell: the middle of a part of the bounds."""
    (low, high), (step, parts) = CELLS[cell][name], PACES[name]
    return round(low + (high - low) * ((step * index + shift) % parts + 0.5) / parts, 4)


def all_voices(split: str) -> list[Voice]:
    """Every voice of a split; no variant or style of one split speaks in the other."""
    variants, styles = (_TABLE[engine][split] for engine in (ESPEAK, KOKORO))
    shift = 0 if split == "train" else 1
    made = []
    for cell in CELLS:
        age, gender = cell
        natural = "CHILD" if age == "CHILD" else gender
        both = product(_TABLE["accents"][gender].split(), variants[gender].split())
        sources = [(ESPEAK, "+".join(one)) for one in both]
        sources += [(KOKORO, one) for one in styles[natural].split()]
        for index, (engine, variant) in enumerate(sources):
            name = f"{split}-{age}-{gender}-{index:02d}".lower()
            traits = {one: _trait((age, gender), one, index, shift) for one in PACES}
            made.append(Voice(name, engine, variant, age, gender, **traits))
    return made


def varied(voice: Voice, rng: Generator) -> Voice:
    """The voice on another day, or of another person much like it: of the same cell."""
    low, high = CELLS[voice.cell]["f0_hz"]
    return replace(
        voice,
        f0_hz=float(np.clip(voice.f0_hz * rng.uniform(0.95, 1.05), low, high)),
        formants=voice.formants * float(rng.uniform(0.975, 1.025)),
        rate=voice.rate * float(rng.uniform(0.94, 1.06)),
        tilt_db=voice.tilt_db + float(rng.uniform(-0.7, 0.7)),
    )


class Espeak:
    """espeak-ng, in this process. The same words in the same voice always sound the same.

    The library carries a state from one utterance to the next, so each gets it freshly loaded
    (1.5 ms), from a private copy that nobody else holds open. The voice that speaks is a variant
    file beside links to the library's data: the named variant with this voice's pitch.
    """

    def __init__(self, paths: AssetPaths) -> None:
        if not paths.espeak_library.is_file():
            raise InputError(f"{paths.espeak_library}: missing; run tiny_world/assets.py")
        self._folder = tempfile.TemporaryDirectory(prefix="espeak")
        home = Path(self._folder.name)
        if len(bytes(home)) > LONGEST_HOME:
            raise InputError(f"{home}: too long a path for espeak; set TMPDIR to a shorter one")
        self._library = home / "espeak.so"
        shutil.copy(paths.espeak_library, self._library)
        self._known = (paths.espeak_data / "voices" / "!v").resolve()
        self._variants = home / "espeak-ng-data" / "voices" / "!v"
        self._variants.mkdir(parents=True)
        for item in paths.espeak_data.resolve().iterdir():
            if item.name != "voices":
                (home / "espeak-ng-data" / item.name).symlink_to(item)

    def say(self, text: str, voice: Voice, manner: Manner = Manner()) -> Spoken:
        """`text` as this voice says it: (samples,) at 22050 Hz, of any loudness."""
        accent, variant = self._variant_file(voice)
        tract = WOMEN_FORMANTS if variant in WOMEN else 1.0
        knob = float(np.interp(math.log(manner.pitch), np.log(KNOB_FACTOR), KNOB))
        reached = float(np.interp(knob, KNOB, KNOB_FACTOR))
        speed = voice.formants / tract
        words = RATE_WPM * voice.rate * manner.rate / speed
        settings = {
            RATE: round(min(max(words, SLOWEST_WPM), FASTEST_WPM)), VOLUME: 100,
            PITCH: round(knob), RANGE: round(min(50 * manner.range, 99)),
        }  # fmt: skip
        samples = self._synthesise(text, f"{accent}+{VARIANT}", settings)
        return Spoken(samples, ESPEAK_RATE_HZ, speed * manner.pitch / reached)

    def _variant_file(self, voice: Voice) -> tuple[str, str]:
        accent, _, variant = voice.variant.partition("+")
        tract = WOMEN_FORMANTS if variant in WOMEN else 1.0
        middle = voice.f0_hz * tract / voice.formants
        kept = [line for line in (self._known / variant).read_text("latin-1").splitlines()
                if not line.startswith(("pitch", "name", "echo"))]
        kept.append(f"pitch {round(middle * LOW_BOUND)} {round(middle * HIGH_BOUND)}")
        text = "\n".join([f"name {VARIANT}", *kept, ""])
        (self._variants / VARIANT).write_text(text, "latin-1")
        return accent, variant

    def _synthesise(self, text: str, name: str, settings: Mapping[int, int]) -> Wave:
        library = ctypes.CDLL(str(self._library))
        heard: list[NDArray[np.int16]] = []

        def hear(wave: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
            if count > 0:
                heard.append(np.ctypeslib.as_array(wave, (count,)).copy())
            return 0

        callback = Callback(hear)
        home = str(self._variants.parents[2]).encode()
        if library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, home, DONT_EXIT) <= 0:
            raise InputError(f"{home.decode()}: no espeak-ng data; unpack its package anew")
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(name.encode()):
            raise InputError(f"espeak voice {name!r}: not found; unpack its package anew")
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        source = text.encode() + b"\0"
        library.espeak_Synth(source, ctypes.c_size_t(len(source)), 0, 1, 0, CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)
        if not heard:
            raise InputError(f"text {text!r}: nothing in it can be spoken")
        return np.concatenate(heard).astype(np.float32) / 32768


class Kokoro:
    """Kokoro-82M: natural speech; its pitch follows the length of the vocal tract."""

    PITCH_SHARE = 0.6           # of the wanted change of pitch: the rest would sound another age

    def __init__(
        self, paths: AssetPaths, styles: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        """styles: tables of styles by length of text; None: those of the model's package."""
        self._session = one_thread(str(paths.kokoro_model))
        self._ids: dict[str, int] = json.loads(paths.kokoro_vocab.read_text("utf-8"))["vocab"]
        if styles is None:
            with np.load(paths.kokoro_styles) as file:
                styles = {name: file[name] for name in file.files}
        self._styles = styles
        self._phonemes = Phonemes(paths.espeak_library, paths.espeak_data, "en-us")

    def say(self, text: str, voice: Voice, manner: Manner = Manner()) -> Spoken:
        """`text` as this voice says it: (samples,) at 24000 Hz."""
        named = (part.split("*") for part in voice.variant.split("+"))
        parts = [(name, float(share)) for name, share in named]
        plain = math.exp(sum(share * math.log(KOKORO_STYLES[name][0]) for name, share in parts))
        tract = sum(share * KOKORO_STYLES[name][1] for name, share in parts)
        # Both pitch and resonances move with the speed: meet half-way between the two wishes.
        speed = math.sqrt(voice.f0_hz / plain * voice.formants / tract)
        speed *= manner.pitch**self.PITCH_SHARE
        return Spoken(
            self.speak(text, parts, voice.rate * manner.rate / speed), KOKORO_RATE_HZ, speed
        )

    def speak(self, text: str, parts: Sequence[tuple[str, float]], rate: float) -> Wave:
        """`text` in a mixture of styles: (samples,) at 24000 Hz. rate: times faster than plain."""
        ids = [self._ids[sign] for sign in self._phonemes(text) if sign in self._ids]
        if not ids:
            raise InputError(f"text {text!r}: nothing in it can be spoken")
        mixed = np.zeros((1, STYLE_WIDTH), np.float32)
        for name, share in parts:
            table = self._styles[name]
            mixed += np.float32(share) * table[min(len(ids), len(table)) - 1].reshape(mixed.shape)
        samples = self._session.run(None, {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": mixed,
            "speed": np.array([rate], np.float32),
        })[0]
        return np.asarray(samples, np.float32).reshape(-1)



ENGINES: dict[str, type[Espeak] | type[Kokoro]] = {ESPEAK: Espeak, KOKORO: Kokoro}


class Studio:
    """Both engines, opened when first needed."""

    def __init__(self, paths: AssetPaths) -> None:
        self._paths = paths
        self._engines: dict[str, Espeak | Kokoro] = {}

    def say(self, text: str, voice: Voice, manner: Manner = Manner()) -> Spoken:
        if voice.engine not in self._engines:
            self._engines[voice.engine] = ENGINES[voice.engine](self._paths)
        return self._engines[voice.engine].say(text, voice, manner)
