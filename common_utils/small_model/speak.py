"""Made speech to train the ear on: many voices and manners, rooms, noises, everyday sentences.

    python -m common_utils.small_model.speak --parts build/parts --people DIR --out build/ear/made
        --engine espeak --pieces 0 1 2 --minutes 30

Each piece is so many minutes of speech from a seed of its own, in one list that is written whole:
more can be made at any time. ENGINE.list holds all that there are.
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from numpy.random import Generator

from common_utils.command import command
from common_utils.small_model import texts, waves
from common_utils.small_model.hibari import SAMPLE_RATE_HZ as HIBARI_HZ
from common_utils.small_model.hibari import Hibari, Style
from common_utils.small_model.pieces import heard_words
from common_utils.tiny_world import effects, voices
from common_utils.tiny_world.assets import AssetPaths
from osum_echat.errors import InputError
from osum_echat.files import read_jsonl, whole_file, write_jsonl
from osum_echat.logs import logger

LEXICONS = ("lexicon_us_gold.json.gz", "lexicon_us_silver.json.gz")
SHARES = (0.65, 0.25, 0.10)  # of chats, WordNet, the tiny world
TOGETHER = 0.25  # how often two sentences make one clip
PLAIN = 0.35  # share of clips without a room, a noise or another microphone

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """A clip of a made voice. wave: (samples,) at 16 kHz; labels as far as they are certain."""

    wave: waves.Wave
    labels: dict[str, str | None]


Speaker = Callable[[str, Generator], Said]


def readable(parts: Path) -> list[list[str]]:
    """Chats, WordNet and the tiny world: sentences of known words, none of them held out."""
    words = known_words(parts)
    return [
        [one for one in pool if can_be_read(one, words)]
        for pool in (
            texts.chat_sentences(parts, held_out=False), texts.wordnet_sentences(parts),
            texts.world_sentences(),
        )
    ]  # fmt: skip


def sentences(pools: list[list[str]], rng: Generator) -> Iterator[str]:
    """Everyday sentences without end. pools: see readable."""
    while True:
        drawn = [_one_of(pools[int(rng.choice(3, p=SHARES))], rng)]
        if rng.random() < TOGETHER:
            drawn.append(_one_of(pools[0], rng))
        yield " ".join(one if one[-1] in ".!?" else f"{one}." for one in drawn)


def _one_of(pool: list[str], rng: Generator) -> str:
    return pool[int(rng.integers(len(pool)))]


def known_words(parts: Path) -> frozenset[str]:
    """The words of hibari's lexicons, lower case."""
    found: set[str] = set()
    for name in LEXICONS:
        path = parts / "hibari/hibari/assets" / name
        found.update(word.lower() for word in json.loads(gzip.decompress(path.read_bytes())))
    return frozenset(found)


def can_be_read(sentence: str, known: frozenset[str]) -> bool:
    """Whether every engine reads the sentence as the ear shall write it."""
    words = heard_words(sentence)
    if not words:
        return False
    return all(
        word in known or (word.endswith("'s") and word[:-2] in known) for word in words.split()
    )


def espeak(parts: Path, split: str = "train") -> Speaker:
    """All voices, ages and feelings of the tiny world that espeak-ng speaks."""
    engine = voices.Espeak(AssetPaths(parts))
    people = [one for one in voices.all_voices(split) if one.engine == voices.ESPEAK]
    moods = sorted(effects.DELIVERIES)

    def say(text: str, rng: Generator) -> Said:
        voice = voices.varied(people[int(rng.integers(len(people)))], rng)
        mood = moods[int(rng.integers(len(moods)))] if rng.random() < 0.6 else "NEUTRAL"
        delivery = effects.DELIVERIES[mood]
        if rng.random() < 0.5:  # the rate, which says little of the feeling, is anybody's
            voice = replace(voice, rate=voice.rate * float(rng.uniform(0.85, 1.25)))
        spoken = engine.say(text, voice, effects.manner_of(delivery, voice, rng))
        wave = effects.render(spoken, voice, delivery, rng)
        return Said(wave, {"age": voice.age, "gender": voice.gender, "emotion": mood})

    return say


def hibari(parts: Path) -> Speaker:
    """The small model's own voice, at other pitches, rates and sizes of the speaker."""
    engine = Hibari(parts)

    def say(text: str, rng: Generator) -> Said:
        size = float(np.exp(rng.uniform(np.log(0.82), np.log(1.22))))
        style = Style(
            speed=float(rng.uniform(0.8, 1.3)) / size,
            pitch=float(np.exp(rng.uniform(-0.35, 0.3))),
            range=float(rng.uniform(0.5, 1.7)),
        )
        wave = engine.say(engine.phonemes(text), style, int(rng.integers(1 << 30))).wave
        wave = soxr.resample(wave, HIBARI_HZ * size, waves.RATE_HZ).astype(np.float32)
        is_her = 0.95 < size < 1.1 and 0.9 < style.pitch < 1.2
        return Said(wave, {"gender": "FEMALE", "age": "ADULT"} if is_her else {})

    return say


def kokoro(parts: Path, held_out: bool = False) -> Speaker:
    """Kokoro's English voices but the held-out ones, or these, alone and mixed, at any rate."""
    folder = parts / "kokoro_voices"
    names = [one.stem for one in sorted(folder.glob("[ab][fm]_*.bin"))]
    names = [one for one in names if (one in texts.HELD_OUT_VOICES) == held_out]
    if not names:
        raise InputError(f"{folder}: no voices; run small_model.parts")
    tables = {
        one: np.fromfile(folder / f"{one}.bin", np.float32).reshape(-1, voices.STYLE_WIDTH)
        for one in names
    }
    engine = voices.Kokoro(AssetPaths(parts), tables)

    def say(text: str, rng: Generator) -> Said:
        first, second = rng.choice(names, 2)
        if rng.random() < 0.5 or first[1] != second[1]:
            second = first
        share = float(rng.uniform(0.3, 0.7))
        style = [(first, share), (second, 1 - share)]
        wave = engine.speak(text, style, float(np.exp(rng.uniform(-0.25, 0.25))))
        wave = soxr.resample(wave, voices.KOKORO_RATE_HZ, waves.RATE_HZ)
        gender = "FEMALE" if first[1] == "f" else "MALE"
        return Said(wave, {"gender": gender, "age": "ADULT"})

    return say


ENGINES: dict[str, Callable[[Path], Speaker]] = {
    "espeak": espeak, "hibari": hibari, "kokoro": kokoro,
}  # fmt: skip


def make_piece(
    name: str, say: Speaker, said: Iterator[str], around: waves.Surroundings, out: Path,
    seconds: float, rng: Generator,
) -> int:  # fmt: skip
    """Speak until there are so many seconds, and write the list; returns its clips."""
    lines: list[dict[str, Any]] = []
    done = 0.0
    while done < seconds:
        text = next(said)
        words = heard_words(text)
        try:
            made = say(text, rng)
        except InputError:
            continue
        wave = made.wave
        silence = np.zeros(int(rng.uniform(0.05, 0.5) * waves.RATE_HZ), np.float32)
        wave = np.concatenate((silence, wave, silence[: len(silence) // 2]))
        if rng.random() > PLAIN:
            wave = waves.elsewhere(wave, around, rng, speed=False)
        key = f"{name}_{len(lines):05d}"
        lines.append(waves.kept(out, name, key, effects.limited(wave), words or "", made.labels))
        done += len(wave) / waves.RATE_HZ
    return write_jsonl(out / f"{name}.list", lines)


def is_made(path: Path, seconds: float) -> bool:
    """Whether a piece's list and its sounds are there, and are as long as is asked for."""
    try:
        lengths = [soundfile.info(path.parent / row["wav"]).duration for _, row in read_jsonl(path)]
    except (InputError, soundfile.LibsndfileError):
        return False
    return sum(lengths[:-1]) < seconds <= sum(lengths)


def speak(
    parts: Path, people: Path, out: Path, engine: Literal["espeak", "hibari", "kokoro"],
    pieces: tuple[int, ...], minutes: float = 30.0,
) -> None:  # fmt: skip
    """Make the pieces that are not there yet, and the list of all."""
    say = ENGINES[engine](parts)
    around, pools = waves.Surroundings.of(people), readable(parts)
    for piece in pieces:
        name = f"{engine}_{piece:03d}"
        if is_made(out / f"{name}.list", minutes * 60):
            continue
        rng = np.random.default_rng([piece, *name.encode()])
        count = make_piece(name, say, sentences(pools, rng), around, out, minutes * 60, rng)
        log.info("%s: %d clips", name, count)
    with whole_file(out / f"{engine}.list") as file:
        file.write(b"".join(one.read_bytes() for one in sorted(out.glob(f"{engine}_*.list"))))


main = command(speak, people="for its noises and rooms", minutes="of speech in each piece")


if __name__ == "__main__":
    sys.exit(main())
