"""Recordings as other rooms, distances and microphones would have given them, and a list of them.

All waves are (samples,) float32 at 16 kHz.
"""

import io
import random
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.random import Generator
from torch import Tensor

from common_utils.tiny_world import effects
from common_utils.tiny_world.voices import Wave
from osum_echat.data.clips import ClipReader, ClipSettings
from osum_echat.data.manifest import open_source
from osum_echat.data.sources import Dropped
from osum_echat.errors import DataError, InputError
from osum_echat.files import read_jsonl
from osum_echat.records import LIST_KEYS, Utterance

RATE_HZ = effects.SAMPLE_RATE_HZ
TRANSCRIBE = "<TRANSCRIBE>"
SPEEDS = (0.88, 1.14)  # pitch and rate together, as of a larger or smaller speaker
NOISE_DB = (3.0, 25.0)  # the voice above the noise
LEVELS_DB = (-36.0, -16.0)
BAND_HZ = (3000.0, 7000.0)  # where a poor microphone or line ends


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Noises and rooms to put voices into; each (samples,)."""

    noises: tuple[Wave, ...]
    rooms: tuple[Wave, ...]

    @classmethod
    def of(cls, people: Path) -> "Surroundings":
        """The recorded ones of the folder with people's speech."""
        rooms = [wave / np.abs(wave).max() for _, wave in recordings(people, "impulse_responses")]
        noises = [wave for _, wave in recordings(people, "noise_ambient")]
        return cls(tuple(noises), tuple(rooms))


def recordings(
    people: Path, name: str, needed: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, Any], Wave]]:
    """What a manifest tells of each clip, and the clip, in the order of its tars.

    needed: fields of its lines beside tar and name. Raises DataError, InputError.
    """
    path = people / f"{name}.jsonl"
    by_tar: dict[str, dict[str, dict[str, Any]]] = {}
    stems: set[str] = set()
    for number, line in read_jsonl(path, "--people names the folder of people's speech"):
        for field in ("tar", "name", *needed):
            if line.get(field) is None:
                raise DataError(f"{path} line {number}: no {field}; every line needs one")
        stem = Path(line["name"]).stem
        if stem in stems:
            raise DataError(f"{path} line {number}: a second {stem}; rename one of them")
        stems.add(stem)
        by_tar.setdefault(line["tar"], {})[line["name"]] = line
    for tar, members in by_tar.items():
        try:
            with tarfile.open(people / tar) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name in members else None
                    if file is not None:
                        wave = decoded(file.read(), f"{people / tar}: {member.name}")
                        yield members.pop(member.name), wave
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{people / tar}: cannot be read ({error}); copy it again") from error
        if members:
            raise DataError(f"{people / tar}: {len(members)} sounds that {path.name} names are not "
                            f"in it, the first {next(iter(members))}; copy it again")  # fmt: skip


def decoded(data: bytes, where: str) -> Wave:
    """A sound file as one channel at 16 kHz."""
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{where}: not a sound ({error}); copy it again") from error
    mono = samples.mean(1)
    return mono if rate == RATE_HZ else soxr.resample(mono, rate, RATE_HZ).astype(np.float32)


def elsewhere(wave: Wave, around: Surroundings, rng: Generator, speed: bool = True) -> Wave:
    """The recording at another speed, in a room, beside a noise, through another microphone."""
    if speed:
        factor = float(np.exp(rng.uniform(*np.log(SPEEDS))))
        wave = soxr.resample(wave, RATE_HZ * factor, RATE_HZ).astype(np.float32)
    if rng.random() < 0.45:
        wave = in_room(wave, around, rng)
    if rng.random() < 0.3:
        wave = effects.tilted(wave, float(rng.uniform(-3, 3)))
    if rng.random() < 0.2:
        edge = rng.uniform(*BAND_HZ)
        low = rng.uniform(50, 300)
        wave = effects.shaped(
            wave, lambda hertz: 1 / (1 + (hertz / edge) ** 12) / (1 + (low / (hertz + 1)) ** 4)
        )
    if rng.random() < 0.6:
        wave = with_noise(wave, around, rng)
    return effects.limited(effects.at_level(wave, float(rng.uniform(*LEVELS_DB))))


def in_room(wave: Wave, around: Surroundings, rng: Generator) -> Wave:
    """The wave in a recorded room or a made one; as long as before."""
    if rng.random() < 0.5:
        return effects.room(wave, rng)
    answer = around.rooms[int(rng.integers(len(around.rooms)))][: 2 * RATE_HZ]
    start = int(np.argmax(np.abs(answer)))
    size = effects.fast_size(len(wave) + len(answer))
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(answer, size), size)
    wet = wet[start : start + len(wave)]
    dry = np.float32(rng.uniform(0.2, 0.8))
    wet *= effects.speech_level(wave) / effects.speech_level(wet.astype(np.float32))
    return (dry * wave + (1 - dry) * wet).astype(np.float32)


def with_noise(wave: Wave, around: Surroundings, rng: Generator) -> Wave:
    """The wave beside a recorded or made noise."""
    level = effects.speech_level(wave) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return wave + noise(len(wave), float(level), around, rng)


def noise(samples: int, level: float, around: Surroundings, rng: Generator) -> Wave:
    """(samples,) of a noise whose root mean square is `level`."""
    if rng.random() < 0.4:
        names = sorted(effects.NOISES)
        return effects.noise(names[int(rng.integers(len(names)))], samples, level, rng)
    source = around.noises[int(rng.integers(len(around.noises)))]
    first = int(rng.integers(len(source)))
    repeats = -(-(first + samples) // len(source))
    part = np.tile(source, repeats)[first : first + samples]
    return (part * (level / (np.sqrt(np.mean(part**2)) + 1e-9))).astype(np.float32)


def kept(
    out: Path, folder: str, key: str, wave: Wave, words: str, labels: Mapping[str, str | None]
) -> dict[str, Any]:
    """Write OUT/FOLDER/KEY.flac, of 16 bits; returns its line of a raw list in OUT, see record."""
    path = out / folder / f"{key}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wave, -1, 1), RATE_HZ, format="FLAC", subtype="PCM_16")
    return record(key, f"{folder}/{key}.flac", words, labels)


def record(key: str, wav: str, words: str, labels: Mapping[str, str | None]) -> dict[str, Any]:
    """A line of a raw list. words: as pieces.heard_words gives them, "" where there are none.

    labels: by the fields of records.Labels; None or absent where nobody knows.
    """
    extra = {LIST_KEYS[kind]: f"<{value}>" for kind, value in labels.items() if value}
    return {
        "task": TRANSCRIBE, "key": key, "wav": wav, "txt": words.strip() or "".join(extra.values()),
        "extra": {**extra, "q_txt": words or None},
    }  # fmt: skip


def utterances(path: Path, most: int = sys.maxsize) -> Iterator[Utterance]:
    """The first so many of a list."""
    source = open_source(path.stem, str(path))
    for unit in range(min(most, len(source))):
        one = source.read(unit)
        if not isinstance(one, Dropped):
            yield one


def clips(path: Path, mels: int) -> Iterator[tuple[Utterance, Tensor]]:
    """Those of a list with the features of each clip as training reads them: (frames, mels)."""
    reader = ClipReader(ClipSettings(cache_mb=1), mels)  # as with a cache: half precision
    for utterance in utterances(path):
        yield utterance, reader.read(reader.draft(utterance.user, random.Random(0)))[0]


def lists_in(folders: tuple[Path, ...]) -> list[Path]:
    """The lists of folders but those that hold what the lists beside them hold already.

    Raises InputError for none.
    """
    every = [one for folder in folders for one in sorted(folder.glob("*.list"))
             if not [*folder.glob(f"{one.stem}_[0-9][0-9][0-9].list")]]  # fmt: skip
    if not every:
        raise InputError(f"no *.list in {', '.join(map(str, folders)) or 'no folder'}; give "
                         "folders of lists")  # fmt: skip
    return every
