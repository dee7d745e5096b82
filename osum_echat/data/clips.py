"""Clips: the features of a turn's sound, read when they are due, and made more varied by chance.

Speed, noise and rooms change the sound; stretches of the features are masked or replaced. Source of
the feature changes and their sizes: OSUM-EChat's data pipeline (spec_aug, spec_sub). Everything
drawn comes from the `rng` of the visit, so that a visit can be repeated.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from osum_echat import audio
from osum_echat.errors import ConfigError, InputError
from osum_echat.records import Turn
from osum_echat.settings import check_numbers

LONGEST_TIME_MASK, LONGEST_BAND_MASK, LONGEST_SUBSTITUTE = 50, 10, 30  # frames, mel bins, frames
_KEPT_SOUNDS = 64
_Name = tuple[Path | bytes | None, tuple[float, float] | None]
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
        check_numbers(self, "prepare.augment", "noise_chance room_chance", 0, 1)
        check_numbers(self, "prepare.augment", "substitutes", 0)
        if len(self.noise_db) != 2 or self.noise_db[0] > self.noise_db[1]:
            raise ConfigError("prepare.augment.noise_db: give the least and the most, in dB")


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """How the clips of a training vary, and how many of them stay in memory."""

    time_masks: int = 0  # stretches of a clip set to zero, of up to 50 frames (upstream: 2)
    band_masks: int = 0  # bands of a clip set to zero, of up to 10 mel bins (upstream: 2)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    cache_mb: int = 0  # features kept in memory in half precision; 0 = none, full precision


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


PLAIN = Change()


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


@dataclass(frozen=True, slots=True)
class PendingClip:
    """A turn's sound at one visit, not decoded yet."""

    turn: Turn
    frames: int  # as its header promises
    change: Change
    mask: float | None  # seed of the masks
    name: _Name | None  # what its features are kept by


class ClipReader:
    """Features of a turn's audio, kept in memory up to a limit, changed at random by setting.

    With a cache every clip goes through half precision, kept or not, so that a training that was
    stopped sees the same numbers as one that was not.
    """

    def __init__(self, settings: ClipSettings, mels: int) -> None:
        self.settings = settings
        self.mels = mels
        self.augmenter = Augmenter(settings.augment)
        self._kept: dict[_Name | None, Tensor] = {}
        self._free_bytes = settings.cache_mb * 2**20

    def draft(self, turn: Turn, rng: random.Random) -> PendingClip:
        """What a clip will be, without decoding it. Raises InputError for what is no audio."""
        seed = rng.random() if self._masks else None
        change = self.augmenter.draw(rng)
        assert turn.audio is not None, "asked for the clip of a turn without audio"
        name = self._name(turn, change)
        kept = self._kept.get(name)
        if kept is not None:
            return PendingClip(turn, len(kept), change, seed, name)
        samples = audio.length(turn.audio, audio.SAMPLE_RATE_HZ, turn.segment_s)
        return PendingClip(turn, change.length(samples) // audio.HOP_SAMPLES, change, seed, name)

    def read(self, clip: PendingClip) -> tuple[Tensor, tuple[audio.Finding, ...]]:
        """(frames, mels) float32, and what was found when it was decoded.

        Raises InputError for audio that cannot be used.
        """
        kept = self._kept.get(clip.name)
        findings: tuple[audio.Finding, ...] = ()
        if kept is None:
            kept, findings = self._features(clip)
            if clip.name and kept.nbytes <= self._free_bytes:
                self._kept[clip.name] = kept
                self._free_bytes -= kept.nbytes
        features = kept.float()
        if clip.mask is None:
            return features, findings
        masked, rng = features.clone(), random.Random(clip.mask)
        mask(masked, rng, self.settings.time_masks, self.settings.band_masks)
        substitute(masked, rng, self.settings.augment.substitutes)
        return masked, findings

    @property
    def _masks(self) -> int:
        settings = self.settings
        return settings.time_masks + settings.band_masks + settings.augment.substitutes

    def _name(self, turn: Turn, change: Change) -> _Name | None:
        """What features are kept by: a file or a content, and a segment; None: they are not."""
        if change != PLAIN or not self.settings.cache_mb:
            return None
        known = turn.audio
        return (blake2b(known).digest() if isinstance(known, bytes) else known), turn.segment_s

    def _features(self, clip: PendingClip) -> tuple[Tensor, tuple[audio.Finding, ...]]:
        assert clip.turn.audio is not None
        sound = audio.read(clip.turn.audio, segment_s=clip.turn.segment_s)
        samples = sound.samples
        if clip.change != PLAIN:
            samples = self.augmenter.apply(samples, clip.change)
        features = audio.log_mel(samples, self.mels)
        return features.half() if self.settings.cache_mb else features, sound.findings
