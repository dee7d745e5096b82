"""Sound files to samples, samples to log-mel features: the only mel of the model side."""
import io
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.errors import InputError

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160                                # 10 ms
WINDOW_SAMPLES = 400                             # 25 ms
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP_SAMPLES     # 100
LONGEST_S = 600
SHORTFALL = 0.95                                 # a file with less of its samples is cut short
_UNKNOWN_LENGTH = 0x7FFF_0000                    # what programs write to a pipe instead of a length
_SINC_CROSSINGS = 6                              # half width of the resampling kernel
_ROLLOFF = 0.99
_LARGEST_KERNEL = 4_000_000                      # elements; beyond it the ratio is too odd


def decode(source: Path | bytes, where: str = "") -> tuple[Tensor, int]:
    """Read a sound file, its channels averaged.

    source: a path, or the bytes of a file (wav, flac, mp3, ogg ...); where: its name in errors.
    Returns (samples,) float32 in [-1, 1] and the sample rate in Hz.
    Raises InputError: missing, empty, cut short, not audio, no samples, not finite, over 10 min.
    """
    where = where or ("audio" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _read(source, where)
    if not data:
        raise InputError(f"{where}: the file is empty; give a wav, flac, mp3 or ogg")
    plain = _plain_wav(data)
    if plain is not None:
        return plain.mono(data, where), plain.rate_hz
    import soundfile

    frames = -1
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = file.samplerate, file.frames
            if frames > LONGEST_S * rate:
                raise InputError(f"{where}: {frames / rate:.0f} s of audio; cut it to "
                                 f"{LONGEST_S // 60} minutes or less")
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        is_audio = frames >= 0 or _is_cut_short(data)
        cause = "damaged or cut short" if is_audio else "not audio that can be read"
        fault = getattr(error, "error_string", error)
        raise InputError(f"{where}: {cause} ({fault}); give a wav, flac, mp3 or ogg") from error
    if len(samples) < SHORTFALL * frames or _is_cut_short(data):
        raise InputError(f"{where}: the file is cut short; copy or record it again")
    if not len(samples):
        raise InputError(f"{where}: no samples in it; record it again")
    channels = torch.from_numpy(samples)
    mono = channels.mean(1) if channels.shape[1] > 1 else channels[:, 0]
    if not math.isfinite(mono.sum(dtype=torch.float64)):    # one bad sample spoils the sum
        raise InputError(f"{where}: samples that are not numbers (NaN, infinite); record it again")
    return mono.contiguous(), rate


@dataclass(frozen=True, slots=True)
class _PlainWav:
    """A whole 16-bit wav of at most ten minutes: what most lists hold, read without a library."""

    rate_hz: int
    channels: int
    start: int      # byte of the first sample
    frames: int

    def mono(self, data: bytes, where: str) -> Tensor:
        """(frames,) float32, channels averaged."""
        if not self.frames:
            raise InputError(f"{where}: no samples in it; record it again")
        count = self.frames * self.channels
        samples = torch.from_numpy(np.frombuffer(data, "<i2", count, self.start).astype(np.float32))
        samples.div_(32768.0)
        return samples.view(-1, self.channels).mean(1) if self.channels > 1 else samples


def _plain_wav(data: bytes) -> _PlainWav | None:
    """What the chunks of a wav tell; None for any other kind of file, or where one is unusual."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    start, rate, channels = 12, 0, 0
    while start + 8 <= len(data):
        name, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        start += 8
        if start + size > len(data):
            return None
        if name == b"fmt ":
            if size < 16:
                return None
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, start)
            if (kind, bits) != (1, 16) or not channels or not rate:
                return None
        if name == b"data":
            frames = size // (2 * channels) if channels else 0
            is_usual = channels > 0 and frames <= LONGEST_S * rate
            return _PlainWav(rate, channels, start, frames) if is_usual else None
        start += size + size % 2
    return None


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file; check the path") from error
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); check the path") from error


def _is_cut_short(data: bytes) -> bool:
    """True for a wav that holds fewer bytes than its data chunk promises."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    start = 12
    while start + 8 <= len(data):
        name, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        if name == b"data":
            return size < _UNKNOWN_LENGTH and start + 8 + size > len(data)
        start += 8 + size + size % 2
    return True


def load(
    source: Path | bytes,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    segment_s: tuple[float, float] | None = None,
) -> Tensor:
    """Read a sound file at one rate: (samples,) float32; `segment_s` takes a part of it."""
    samples, rate = decode(source)
    if segment_s is not None:
        start, end = (round(second * rate) for second in segment_s)
        samples = samples[start:end]
        if not len(samples):
            where = "audio" if isinstance(source, bytes) else str(source)
            raise InputError(f"{where}: nothing between {segment_s[0]} s and {segment_s[1]} s")
    return resample(samples, rate, sample_rate_hz)


def length(
    source: Path | bytes,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    segment_s: tuple[float, float] | None = None,
) -> int:
    """How many samples `load` would give, by the header alone. Raises InputError as `load` does.

    Headers of some packed kinds (mp3) only come near.
    """
    import soundfile

    where = "audio" if isinstance(source, bytes) else str(source)
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{where}: no such file; check the path")
    plain = _plain_wav(source) if isinstance(source, bytes) else None
    if plain is not None:
        return _part(plain.frames, plain.rate_hz, sample_rate_hz, segment_s)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        header = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, OSError) as error:
        fault = getattr(error, "error_string", error)
        raise InputError(f"{where}: not audio that can be read ({fault}); give a wav, flac, mp3 "
                         "or ogg") from error
    with header:
        samples, rate = header.frames, header.samplerate
    if samples > LONGEST_S * rate:
        raise InputError(f"{where}: {samples / rate:.0f} s of audio; cut it to "
                         f"{LONGEST_S // 60} minutes or less")
    return _part(samples, rate, sample_rate_hz, segment_s)


def _part(samples: int, from_hz: int, to_hz: int, segment_s: tuple[float, float] | None) -> int:
    """How many samples a segment of a file has at another rate."""
    if segment_s is not None:
        start, end = (min(round(second * from_hz), samples) for second in segment_s)
        samples = end - start
    return -(-samples * to_hz // from_hz)


def resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Change the rate with a Hann-windowed sinc, as the published models were trained.

    samples: (samples,) -> (ceil(samples * to_hz / from_hz),). A ratio too odd for a table of
    kernels (44,101 to 16,000 Hz, say) goes through soxr instead.
    """
    if from_hz == to_hz:
        return samples
    divisor = math.gcd(from_hz, to_hz)
    old, new = from_hz // divisor, to_hz // divisor
    length = math.ceil(new * len(samples) / old)
    if new * (old + 2 * _half_width(old, new)) > _LARGEST_KERNEL:
        import soxr

        odd = torch.from_numpy(soxr.resample(samples.numpy(), from_hz, to_hz))
        return functional.pad(odd, (0, max(0, length - len(odd))))[:length]
    half = _half_width(old, new)
    padded = functional.pad(samples, (half, half + old))
    phases = functional.conv1d(padded[None, None], _kernels(old, new), stride=old)
    return phases[0].T.reshape(-1)[:length]


def _half_width(old: int, new: int) -> int:
    return math.ceil(_SINC_CROSSINGS * old / (min(old, new) * _ROLLOFF))


@lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> Tensor:
    """One filter for each of the `new` output phases: (new, 1, 2 * half width + old) float32."""
    cutoff, half = min(old, new) * _ROLLOFF, _half_width(old, new)
    taps = torch.arange(-half, half + old, dtype=torch.float64) / old
    phases = torch.arange(0, -new, -1) / new            # float32, as torchaudio has it
    times = ((taps[None] + phases[:, None]) * cutoff).clamp(-_SINC_CROSSINGS, _SINC_CROSSINGS)
    window = torch.cos(times * math.pi / _SINC_CROSSINGS / 2) ** 2
    return (torch.sinc(times) * window * (cutoff / old)).float()[:, None]


def log_mel(samples: Tensor, mels: int = 80) -> Tensor:
    """Whisper-style features: (samples,) at 16 kHz -> (samples // 160, mels), 100 frames a second.

    log10 of Slaney mel energies, at most 8 below the loudest of the utterance, then (x + 4) / 4.
    Raises InputError below one window (25 ms).
    """
    if len(samples) < WINDOW_SAMPLES:
        raise InputError(f"audio of {len(samples)} samples at 16 kHz is too short; "
                         f"give {WINDOW_SAMPLES} (25 ms) or more")
    edge = WINDOW_SAMPLES // 2  # mirrored on either side: what torch.stft does, at half its cost
    mirrored = torch.cat(
        (samples[1 : edge + 1].flip(0), samples, samples[-edge - 1 : -1].flip(0)))
    frames = mirrored.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)[:-1] * _window()
    parts = torch.view_as_real(torch.fft.rfft(frames)).square_()
    energies = (parts[..., 0] + parts[..., 1]) @ _mel_bank(mels)
    logs = energies.clamp_(min=1e-10).log10_()
    return logs.clamp_(min=float(logs.max()) - 8.0).add_(4.0).div_(4.0)


@lru_cache(maxsize=1)
def _window() -> Tensor:
    return torch.hann_window(WINDOW_SAMPLES)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear below 1 kHz (15 mel), then 27 steps for each factor of 6.4."""
    above = 1000.0 * np.exp(np.log(6.4) / 27.0 * (mel - 15.0))
    return np.where(mel < 15.0, mel * 200.0 / 3.0, above)


@lru_cache(maxsize=4)
def _mel_bank(mels: int) -> Tensor:
    """Triangles of equal area: (201, mels) float32, 0 to 8 kHz."""
    top = 15.0 + 27.0 / np.log(6.4) * np.log(SAMPLE_RATE_HZ / 2 / 1000.0)
    edges = _mel_to_hz(np.linspace(0.0, top, mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE_HZ / 2, WINDOW_SAMPLES // 2 + 1)
    rises = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falls = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rises, falls)).astype(np.float32)
    areas = triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(np.ascontiguousarray(areas.T, dtype=np.float32))
