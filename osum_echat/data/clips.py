"""Clips: how long a turn's sound is, learnt from its header, and its features when it is wanted."""

import random
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from osum_echat import audio
from osum_echat.data.augment import Augmenter, Change, mask, substitute
from osum_echat.data.settings import PrepareSettings
from osum_echat.records import Turn

_PLAIN = Change()


@dataclass(frozen=True, slots=True)
class PendingClip:
    """A turn's sound at one visit, not decoded yet."""

    turn: Turn
    frames: int  # as its header promises
    change: Change
    mask: float | None  # seed of the masks


class ClipReader:
    """Features of a turn's audio, kept in memory up to a limit, changed at random by setting.

    With a cache every clip goes through half precision, kept or not, so that a training that was
    stopped sees the same numbers as one that was not.
    """

    def __init__(self, settings: PrepareSettings, mels: int) -> None:
        self.settings = settings
        self.mels = mels
        self.augmenter = Augmenter(settings.augment)
        self._kept: dict[tuple[Path, tuple[float, float] | None], Tensor] = {}
        self._free_bytes = settings.cache_mb * 2**20

    def draft(self, turn: Turn, rng: random.Random) -> PendingClip:
        """What a clip will be, without decoding it. Raises InputError for what is no audio."""
        seed = rng.random() if self._masks else None
        change = self.augmenter.draw(rng) if self.settings.augment.changes_sound else _PLAIN
        kept = self._kept.get(self._name(turn)) if change == _PLAIN else None
        if kept is not None:
            return PendingClip(turn, len(kept), change, seed)
        assert turn.audio is not None, "asked for the clip of a turn without audio"
        samples = audio.length(turn.audio, audio.SAMPLE_RATE_HZ, turn.segment_s)
        return PendingClip(turn, change.length(samples) // audio.HOP_SAMPLES, change, seed)

    def read(self, clip: PendingClip) -> Tensor:
        """(frames, mels) float32. Raises InputError for audio that cannot be used."""
        name = self._name(clip.turn) if clip.change == _PLAIN else None
        kept = self._kept.get(name) if name else None
        if kept is None:
            kept = self._features(clip)
            if name and kept.nbytes <= self._free_bytes:
                self._kept[name] = kept
                self._free_bytes -= kept.nbytes
        features = kept.float()
        if clip.mask is None:
            return features
        masked, rng = features.clone(), random.Random(clip.mask)
        mask(masked, rng, self.settings.time_masks, self.settings.band_masks)
        substitute(masked, rng, self.settings.augment.substitutes)
        return masked

    @property
    def _masks(self) -> int:
        settings = self.settings
        return settings.time_masks + settings.band_masks + settings.augment.substitutes

    def _name(self, turn: Turn) -> tuple[Path, tuple[float, float] | None]:
        return (turn.audio if isinstance(turn.audio, Path) else Path()), turn.segment_s

    def _features(self, clip: PendingClip) -> Tensor:
        assert clip.turn.audio is not None
        samples = audio.load(clip.turn.audio, audio.SAMPLE_RATE_HZ, clip.turn.segment_s)
        if clip.change != _PLAIN:
            samples = self.augmenter.apply(samples, clip.change)
        features = audio.log_mel(samples, self.mels)
        return features.half() if self.settings.cache_mb else features
