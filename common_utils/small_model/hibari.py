"""The small model's voice: hibari, run directly from its unpacked package, in four styles.

hibari (Apache-2.0) is a student of one Kokoro voice with a complete English G2P. Its network is
given three more inputs here, for the pitch, and one more output, how long each phoneme lasts.
"""

import importlib
import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import soxr

from common_utils.tiny_world.reply_voice import SAMPLE_RATE_HZ, Wave, levelled, one_thread
from osum_echat.errors import DataError, InputError

PACKAGE = "hibari"                      # a folder of the unpacked parts
OWN_RATE_HZ = 24_000
OWN_STEP_S = 0.025                      # of the durations
DURATIONS, PITCH, MELODY = "/Clip_output_0", "f0", "/Gather_36_output_0"
MIDDLE_HZ = 190.0                       # of the voice's pitch: what the range is counted from
PAUSES = ".!?…;:,—"

@dataclass(frozen=True, slots=True)
class Style:
    """How a reply is spoken: times faster, times higher, exponent of the melody, decibels."""

    speed: float = 1.0
    pitch: float = 1.0
    range: float = 1.0
    gain_db: float = 0.0


STYLES = {
    "CALM": Style(),
    "CHEERFUL": Style(speed=1.06, pitch=1.13, range=1.3, gain_db=3.0),
    "SOFT": Style(speed=0.86, pitch=0.92, range=0.75, gain_db=-7.0),
    "BRISK": Style(speed=1.2, pitch=1.05, range=1.1, gain_db=2.0),
}


@dataclass(frozen=True, slots=True)
class Spoken:
    """A sentence. wave: (samples,) at 22.05 kHz; starts_s: when each phoneme letter begins."""

    wave: Wave
    phonemes: str
    starts_s: tuple[float, ...]

    def led_by(self, silence_s: float) -> "Spoken":
        """With at most so much silence before the first phoneme."""
        spare = max(0.0, self.starts_s[0] - silence_s)
        cut = round(spare * SAMPLE_RATE_HZ)
        return Spoken(self.wave[cut:], self.phonemes, tuple(one - spare for one in self.starts_s))


class Hibari:
    """Speaks sentences. parts: the folder that holds the unpacked package."""

    def __init__(self, parts: Path) -> None:
        root = parts / PACKAGE
        if not (root / "hibari" / "tts.py").is_file():
            raise DataError(f"{root}: hibari's package is missing; run small_model.parts")
        if str(root) not in sys.path:
            sys.path.append(str(root))
        assets = root / "hibari" / "assets"
        self._vocab: dict[str, int] = json.loads((assets / "vocab.json").read_text("utf-8"))
        graph = with_pitch(onnx.load(assets / "hibari.onnx"))
        self._session = one_thread(graph.SerializeToString())
        self._dsp = importlib.import_module("hibari.dsp")

    @cached_property
    def g2p(self) -> Any:
        """Words to phonemes; loaded when first used."""
        return importlib.import_module("hibari.g2p").G2P()

    def phonemes(self, sentence: str) -> str:
        """What is spoken, in the voice's letters, with punctuation. Raises InputError: nothing."""
        found = "".join(letter for letter in self.g2p(sentence) if letter in self._vocab)
        if not re.search(r"\w", found):
            raise InputError(f"sentence {sentence!r}: nothing in it can be spoken")
        return found

    def say(self, phonemes: str, style: Style, seed: int = 0) -> Spoken:
        """One sentence, from its phonemes."""
        ids = [0, *(self._vocab[letter] for letter in phonemes), 0]
        *parts, durations = self._session.run(None, {
            "ids": np.array([ids], np.int64),
            "speed": np.array([style.speed], np.float32),
            "pitch": np.array([style.pitch * MIDDLE_HZ / 100], np.float32),
            "range": np.array([style.range], np.float32),
        })
        raw = self._dsp.synth(*(part[0] for part in parts), np.random.default_rng(seed))
        ends = np.cumsum(durations.reshape(-1)) * OWN_STEP_S
        wave = soxr.resample(np.asarray(raw, np.float32), OWN_RATE_HZ, SAMPLE_RATE_HZ)
        return Spoken(
            levelled(np.asarray(wave, np.float32), style.gain_db), phonemes,
            tuple(float(end) for end in ends[:-2]),
        )


def with_pitch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with `pitch` (of the middle, in 100 Hz) and `range` as inputs: (1,) each, and
    the durations in frames as the last output."""
    graph = model.graph
    place = next(n for n, node in enumerate(graph.node) if PITCH in node.output)
    node = graph.node[place]
    middle = onnx.numpy_helper.from_array(np.array([MIDDLE_HZ / 100], np.float32), "own_middle")
    floor = onnx.numpy_helper.from_array(np.array([1e-2], np.float32), "own_floor")
    graph.initializer.extend((middle, floor))
    new = [
        onnx.helper.make_node("Max", [MELODY, "own_floor"], ["own_melody"]),
        onnx.helper.make_node("Div", ["own_melody", "own_middle"], ["own_height"]),
        onnx.helper.make_node("Pow", ["own_height", "range"], ["own_wide"]),
        onnx.helper.make_node("Mul", ["own_wide", "pitch"], ["own_moved"]),
    ]
    node.input[list(node.input).index(MELODY)] = "own_moved"
    for one in reversed(new):
        graph.node.insert(place, one)
    told, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph.input.extend(told(name, number, [1]) for name in ("pitch", "range"))
    graph.output.append(told(DURATIONS, number, None))
    return model


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with a mark at its end."""
    tts = importlib.import_module("hibari.tts")
    found = [one.strip() for one in tts.Hibari.split_sentences(text)]
    return [one if one[-1:] in PAUSES else f"{one}." for one in found if one]
