"""Sound on the wire: the formats of a live session, resampled without seams, and whole files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from osum_echat.errors import InputError

Samples = np.ndarray[Any, np.dtype[np.float32]]     # (samples,), mono, -1 to 1
PCM_RATE_HZ, TELEPHONE_RATE_HZ = 24_000, 8_000
FULL_SCALE = 32_768


@dataclass(frozen=True, slots=True)
class WireFormat:
    """A format of a session's sound, by the protocol's name. subtype: as libsndfile calls it."""

    name: str
    rate_hz: int
    subtype: str
    sample_bytes: int

    def decode(self, data: bytes) -> Samples:
        """Raises InputError for half a sample."""
        if len(data) % self.sample_bytes:
            raise InputError(f"audio: {len(data)} bytes; {self.name} has {self.sample_bytes} each")
        if self.sample_bytes == 2:
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(FULL_SCALE)
        import soundfile

        samples, _ = soundfile.read(
            io.BytesIO(data), dtype="float32", samplerate=self.rate_hz, channels=1,
            format="RAW", subtype=self.subtype,
        )  # fmt: skip
        return samples

    def encode(self, samples: Samples) -> bytes:
        """What is beyond full scale is clipped."""
        if self.sample_bytes == 2:
            levels = np.rint(samples.astype(np.float64) * FULL_SCALE)
            return levels.clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()
        import soundfile

        held = io.BytesIO()
        soundfile.write(held, samples, self.rate_hz, format="RAW", subtype=self.subtype)
        return held.getvalue()

    def settings(self) -> dict[str, Any]:
        """The object that the protocol tells of it."""
        rate = {"rate": self.rate_hz} if self.sample_bytes == 2 else {}
        return {"type": self.name, **rate}


FORMATS = {one.name: one for one in (
    WireFormat("audio/pcm", PCM_RATE_HZ, "PCM_16", 2),
    WireFormat("audio/pcmu", TELEPHONE_RATE_HZ, "ULAW", 1),
    WireFormat("audio/pcma", TELEPHONE_RATE_HZ, "ALAW", 1),
)}  # fmt: skip


class Resampler:
    """Sound that comes in pieces at another rate, the joins exact to the sample."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._resample: Callable[..., Samples] | None = None
        if from_hz != to_hz:
            import soxr

            self._resample = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32").resample_chunk

    def push(self, samples: Samples, last: bool = False) -> Samples:
        """What can be told by now: (samples,). last: nothing follows."""
        return samples if self._resample is None else self._resample(samples, last=last)


# Whole files that a reply can be sent as: libsndfile's format and subtype, and the media type.
FILE_FORMATS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "pcm": ("RAW", "PCM_16", "audio/pcm"),
}


def encode_file(samples: Samples, rate_hz: int, name: str) -> bytes:
    """A whole sound file, clipped at full scale. name: one of FILE_FORMATS; opus and pcm have 24
    kHz."""
    import soundfile

    kind, subtype, _ = FILE_FORMATS[name]
    if name in ("opus", "pcm") and rate_hz != PCM_RATE_HZ:
        samples, rate_hz = Resampler(rate_hz, PCM_RATE_HZ).push(samples, last=True), PCM_RATE_HZ
    held = io.BytesIO()
    soundfile.write(held, samples, rate_hz, format=kind, subtype=subtype)
    return held.getvalue()
