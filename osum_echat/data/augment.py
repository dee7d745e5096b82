"""Sound made more varied: speed, noise, rooms; and features with stretches masked or replaced.

Source of the feature changes and their sizes: OSUM-EChat's data pipeline (spec_aug, spec_sub).
Everything drawn comes from the `rng` of the visit, so that a visit can be repeated.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from osum_echat import audio
from osum_echat.errors import ConfigError, InputError

LONGEST_TIME_MASK, LONGEST_BAND_MASK, LONGEST_SUBSTITUTE = 50, 10, 30  # frames, mel bins, frames
_KEPT_SOUNDS = 64
_DRY_BEFORE = 0.9  # of a room's loudest sample: the first one that reaches it is the direct sound


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """Changes to what is heard; all are off unless set."""

    speeds: tuple[float, ...] = ()  # one is drawn each visit (upstream, off: 0.9, 1.0, 1.1)
    substitutes: int = 0  # stretches replaced by earlier ones of the same clip (upstream: 3)
    noises: str | None = None  # file that names a sound file a line: noises to mix in
    noise_chance: float = 0.5
    noise_db: tuple[float, ...] = (5.0, 20.0)  # least and most that the voice is louder by
    rooms: str | None = None  # file that names a sound file a line: impulse responses of rooms
    room_chance: float = 0.3

    def __post_init__(self) -> None:
        if any(not 0.5 <= speed <= 2.0 for speed in self.speeds):
            raise ConfigError(f"prepare.augment.speeds: {list(self.speeds)}, need 0.5 to 2.0 each")
        for name in ("noise_chance", "room_chance"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"prepare.augment.{name}: {getattr(self, name)}, need 0 to 1")
        if len(self.noise_db) != 2 or self.noise_db[0] > self.noise_db[1]:
            raise ConfigError("prepare.augment.noise_db: give the least and the most, in dB")
        if self.substitutes < 0:
            raise ConfigError("prepare.augment.substitutes: need 0 or more")

    @property
    def changes_sound(self) -> bool:
        """Whether a clip may sound otherwise from visit to visit."""
        return bool(self.speeds or self.noises or self.rooms)


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to the sound of a clip at one visit."""

    speed: float = 1.0
    noise: Path | None = None
    noise_db: float = 0.0
    noise_start: float = 0.0  # part of the noise, 0 to 1
    room: Path | None = None

    def length(self, samples: int) -> int:
        """How many samples are left of so many."""
        return samples if self.speed == 1.0 else -(-samples * 16_000 // round(16_000 * self.speed))


class Augmenter:
    """Draws changes and makes them. Raises ConfigError for a list that cannot be read."""

    def __init__(self, settings: AugmentSettings) -> None:
        self.settings = settings
        self.noises = _listed(settings.noises, "noises")
        self.rooms = _listed(settings.rooms, "rooms")

    def draw(self, rng: random.Random) -> Change:
        """The change of one clip at one visit; draws nothing where nothing is set."""
        settings = self.settings
        speed = rng.choice(settings.speeds) if settings.speeds else 1.0
        noise, noise_db, start, room = None, 0.0, 0.0, None
        if self.noises and rng.random() < settings.noise_chance:
            noise, start = rng.choice(self.noises), rng.random()
            noise_db = rng.uniform(*settings.noise_db)
        if self.rooms and rng.random() < settings.room_chance:
            room = rng.choice(self.rooms)
        return Change(speed, noise, noise_db, start, room)

    def apply(self, samples: Tensor, change: Change) -> Tensor:
        """(samples,) at 16 kHz -> (change.length(samples),); no louder than full scale."""
        if change.speed != 1.0:
            samples = audio.resample(samples, round(16_000 * change.speed), audio.SAMPLE_RATE_HZ)
        if change.room is not None:
            samples = in_room(samples, _sound(change.room))
        if change.noise is not None:
            samples = with_noise(samples, _sound(change.noise), change.noise_db, change.noise_start)
        peak = float(samples.abs().max()) if len(samples) else 0.0
        return samples / peak if peak > 1.0 else samples


def with_noise(samples: Tensor, noise: Tensor, voice_db: float, start: float) -> Tensor:
    """Mix a noise in, `voice_db` below the voice in mean power; a short noise is repeated.

    samples: (samples,); noise: (noise samples,); start: where in the noise to begin, 0 to 1.
    """
    first = int(start * len(noise)) % len(noise)
    repeats = -(-(first + len(samples)) // len(noise))
    part = noise.repeat(repeats)[first : first + len(samples)]
    power = float(part.square().mean())
    if power == 0.0:
        return samples
    wanted = float(samples.square().mean()) / 10.0 ** (voice_db / 10.0)
    return samples + part * (wanted / power) ** 0.5


def in_room(samples: Tensor, response: Tensor) -> Tensor:
    """The voice as a room sends it back: in time with the dry one, and of equal power.

    samples: (samples,); response: (response samples,) at the same rate. The size is kept.
    """
    loud = response.abs()
    direct = int((loud >= _DRY_BEFORE * loud.max()).nonzero()[0])
    size = len(samples) + len(response) - 1
    spectrum = torch.fft.rfft(samples, size) * torch.fft.rfft(response, size)
    wet = torch.fft.irfft(spectrum, size)[direct : direct + len(samples)]
    power = float(wet.square().mean())
    return wet * (float(samples.square().mean()) / power) ** 0.5 if power > 0.0 else samples


def mask(features: Tensor, rng: random.Random, time_masks: int, band_masks: int) -> None:
    """SpecAugment in place: stretches and bands of (frames, mels) set to zero."""
    frames, mels = features.shape
    for _ in range(time_masks):
        start = rng.randrange(frames)
        features[start : start + rng.randint(1, LONGEST_TIME_MASK)] = 0.0
    for _ in range(band_masks):
        start = rng.randrange(mels)
        features[:, start : start + rng.randint(1, LONGEST_BAND_MASK)] = 0.0


def substitute(features: Tensor, rng: random.Random, times: int) -> None:
    """Replace stretches of (frames, mels) by ones that came before them, in place."""
    frames = len(features)
    for _ in range(times):
        start = rng.randrange(frames)
        size = min(rng.randint(1, LONGEST_SUBSTITUTE), frames - start)
        back = rng.randint(0, start)
        features[start : start + size] = features[start - back : start - back + size].clone()


def _listed(place: str | None, name: str) -> tuple[Path, ...]:
    """The sound files that a file names, relative to its folder."""
    if place is None:
        return ()
    try:
        lines = Path(place).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prepare.augment.{name}: {place}: cannot be read ({error})") from error
    paths = tuple(Path(place).parent / line.strip() for line in lines if line.strip())
    missing = next((path for path in paths if not path.is_file()), None)
    if not paths or missing is not None:
        raise ConfigError(f"prepare.augment.{name}: {place}: {missing or 'nothing'} in it; "
                          "name one sound file a line")  # fmt: skip
    return paths


@lru_cache(maxsize=_KEPT_SOUNDS)
def _sound(path: Path) -> Tensor:
    samples = audio.load(path)
    if not float(samples.abs().max()):
        raise InputError(f"{path}: silent; leave it out of the list of noises or rooms")
    return samples
