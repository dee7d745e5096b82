"""Sound files to samples, samples to log-mel features: the only mel of the model side."""
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from osum_echat import sound_headers
from osum_echat.errors import InputError

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160                                # 10 ms
WINDOW_SAMPLES = 400                             # 25 ms
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP_SAMPLES     # 100
LONGEST_S = 600
SHORTFALL = 0.95                                 # a file with less of its samples is cut short
_SLACK_S = 0.1                                   # that a segment may end behind its recording
_BLOCK_VALUES = 1 << 22                          # decoded at once: frames times channels
_CANCELLED = 0.1                                 # of the channels' power over their number
_SILENT = 2 / 32768                              # from the lowest sample to the highest
_LOUD, _WHOLE_NUMBERS = 8.0, 256.0               # peaks: far above full scale; surely not of floats
_SCALES = (2.0**15, 2.0**23, 2.0**31)            # full scale of whole numbers
_SINC_CROSSINGS = 6                              # half width of the resampling kernel
_ROLLOFF = 0.99
_LARGEST_KERNEL = 4_000_000                      # elements; beyond it the ratio is too odd

# What may be told of a sound that is used all the same
SILENCE = "digital silence"
CANCELLING = "channels that cancel each other"
RESCALED = "samples at the scale of whole numbers"
LOUD = "samples far above full scale"
OPEN_END = "no mark at its end"
BEYOND = "segment that ends behind its recording"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a sound, and what was done about it."""

    kind: str       # SILENCE, CANCELLING ...
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Sound:
    """What a file, or a part of it, holds."""

    samples: Tensor     # (samples,) float32, full scale is 1
    rate_hz: int
    findings: tuple[Finding, ...] = ()


def read(
    source: Path | bytes,
    sample_rate_hz: int | None = SAMPLE_RATE_HZ,
    segment_s: tuple[float, float] | None = None,
    where: str = "",
) -> Sound:
    """Read a sound file, its channels averaged, block by block: never all of it at its own rate.

    source: a path, or the bytes of a file (wav, flac, mp3, ogg ...); sample_rate_hz: None keeps the
    file's; segment_s: the part that is wanted, to which alone the limit of ten minutes applies.
    Channels that cancel each other are not averaged, the first is taken; samples at the scale of
    whole numbers are scaled to 1; both are told, as is a segment that ends behind the file's end.
    Raises InputError: missing, empty, cut short, not audio, no samples, not finite, over 10 min.
    """
    with closing(_SoundFile(source, where)) as file:
        first, last = file.part(segment_s)
        to_hz = sample_rate_hz or file.rate_hz
        levels = _Levels()
        samples = _resampled(levels.mono(file.blocks(first, last)), file.rate_hz, to_hz)
        findings = []
        if levels.cancel:
            findings.append(Finding(CANCELLING, "the first one is taken"))
            levels = _Levels(channel=0)
            samples = _resampled(levels.mono(file.blocks(first, last)), file.rate_hz, to_hz)
        if levels.frames < SHORTFALL * (last - first):
            raise file.cut_short()
        if not levels.frames:
            raise InputError(f"{file.where}: no samples in it; record it again")
        if not math.isfinite(levels.low + levels.high):
            raise InputError(
                f"{file.where}: samples that are not numbers (NaN, infinite); record it again")
        scale, told = levels.scale()
        if scale != 1.0:
            samples = samples / scale
        findings += told
        if (levels.high - levels.low) / scale <= _SILENT:
            findings.append(Finding(SILENCE, f"{levels.frames / file.rate_hz:.1f} s of it"))
        if not file.is_closed:
            findings.append(Finding(OPEN_END, "it may have been cut short"))
        beyond_s = (segment_s[1] if segment_s else 0.0) - file.frames / file.rate_hz
        if _SLACK_S < beyond_s < math.inf:
            findings.append(Finding(BEYOND, f"{beyond_s:.2f} s of it are not there"))
    return Sound(samples, to_hz, tuple(findings))


def load(
    source: Path | bytes,
    sample_rate_hz: int | None = SAMPLE_RATE_HZ,
    segment_s: tuple[float, float] | None = None,
) -> Tensor:
    """The samples that `read` gives: (samples,) float32."""
    return read(source, sample_rate_hz, segment_s).samples


def length(
    source: Path | bytes,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    segment_s: tuple[float, float] | None = None,
    where: str = "",
) -> int:
    """How many samples `load` would give, by the header alone. Raises InputError as `load` does.

    Headers of some packed kinds (mp3) only come near.
    """
    with closing(_SoundFile(source, where)) as file:
        first, last = file.part(segment_s)
        return -(-(last - first) * sample_rate_hz // file.rate_hz)


@dataclass(slots=True)
class _Levels:
    """What is counted of a sound while it is decoded. channel: the one to take; None: the mean."""

    channel: int | None = None
    frames: int = 0
    low: float = math.inf
    high: float = -math.inf
    is_whole: bool = True       # every sample is a whole number
    mixed: float = 0.0          # power of the mean of the channels
    apart: float = 0.0          # mean power of the channels
    channels: int = 1

    def mono(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """(frames, channels) blocks -> (frames,) blocks."""
        for block in blocks:
            self.channels = block.shape[1]
            mixed = block.mean(1) if self.channels > 1 else block[:, 0]
            if self.channel is not None:
                mixed = block[:, self.channel].contiguous()
            elif self.channels > 1:
                self.mixed += float(mixed.var(correction=0)) * len(block)
                self.apart += float(block.var(0, correction=0).mean()) * len(block)
            low, high = (float(one) for one in torch.aminmax(mixed))
            # unlike min and max, these keep a NaN of any block
            self.low = float(np.minimum(self.low, low))
            self.high = float(np.maximum(self.high, high))
            if max(-low, high) > 1.0:
                self.is_whole = self.is_whole and bool((mixed == mixed.round()).all())
            self.frames += len(block)
            yield mixed

    @property
    def cancel(self) -> bool:
        """Whether next to nothing is left of the channels in their mean."""
        return self.mixed < _CANCELLED / self.channels * self.apart

    def scale(self) -> tuple[float, list[Finding]]:
        """What samples are to be divided by, and what is told of them."""
        peak = max(-self.low, self.high)
        if peak > _WHOLE_NUMBERS or (peak > 1.0 and self.is_whole):
            scale = next((one for one in _SCALES if peak <= one), None)
            if scale is not None:
                detail = f"a peak of {peak:.0f}; divided by {scale:.0f}"
                return scale, [Finding(RESCALED, detail)]
        loud = Finding(LOUD, f"a peak of {peak:.3g}, where 1 is full scale")
        return 1.0, [loud] if peak > _LOUD else []


class _SoundFile:
    """A sound file that is open: what its header says, and its samples in blocks."""

    def __init__(self, source: Path | bytes, where: str = "") -> None:
        self.where = where or ("audio" if isinstance(source, bytes) else str(source))
        self._library: Any = None
        self._stream = self._opened(source)
        try:
            self._size = self._stream.seek(0, io.SEEK_END)
            if not self._size:
                raise InputError(f"{self.where}: the file is empty; give a wav, flac, mp3 or ogg")
            self._read_header(source)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._library is not None:
            self._library.close()
        self._stream.close()

    def part(self, segment_s: tuple[float, float] | None) -> tuple[int, int]:
        """First and last frame of a segment. Raises InputError for too many, or none."""
        first, last = 0, self.frames
        if segment_s is not None:
            first, last = (round(min(second * self.rate_hz, last)) for second in segment_s)
            if first >= last:
                start, end = segment_s
                raise InputError(f"{self.where}: nothing between {start} s and {end} s")
        if last - first > LONGEST_S * self.rate_hz:
            raise InputError(f"{self.where}: {(last - first) / self.rate_hz:.0f} s of audio; cut "
                             f"it to {LONGEST_S // 60} minutes or less")
        return first, last

    def blocks(self, first: int, last: int) -> Iterator[Tensor]:
        """(frames, channels) float32 blocks of the frames from `first` to before `last`."""
        size = max(1, _BLOCK_VALUES // self.channels)
        try:
            at = self._seek(first)
            while at < last:
                wanted = min(size, last - at if at >= first else first - at)
                block = self._decoded(wanted)
                if at >= first and len(block):
                    yield torch.from_numpy(block)
                at += len(block)
                if len(block) < wanted:
                    return
        except InputError:
            raise
        except Exception as error:  # of a codec: any class, any words
            raise self._fault(error, "damaged or cut short") from error

    def _opened(self, source: Path | bytes) -> BinaryIO:
        if isinstance(source, bytes):
            return io.BytesIO(source)
        try:
            if not source.exists() or source.is_file():
                return source.open("rb")
        except FileNotFoundError as error:
            raise InputError(f"{self.where}: no such file; check the path") from error
        except (OSError, ValueError) as error:
            fault = getattr(error, "strerror", None) or error
            raise InputError(f"{self.where}: cannot be read ({fault}); check the path") from error
        raise InputError(f"{self.where}: cannot be read (not a file); check the path")

    def _read_header(self, source: Path | bytes) -> None:
        self._stream.seek(0)
        magic = self._stream.read(4)
        data, wave = sound_headers.data_of(self._stream, magic, self._size)
        end = None if data is None else data[1]
        self.is_closed = True
        if magic == b"OggS":
            end, self.is_closed = sound_headers.end_of_ogg(self._stream, self._size)
        elif data is None:
            self.is_closed = sound_headers.ends_with_a_frame(self._stream, magic, self._size)
        missing = 0 if end is None else end - self._size
        promised = math.inf if data is None or end is None else end - data[0]
        if missing > min(sound_headers.SLACK_BYTES, (1 - SHORTFALL) * promised):
            raise self.cut_short()
        self._start = None
        if wave is not None and data is not None:
            self.channels, self.rate_hz = wave
            self._start = data[0]
            stop = self._size if end is None else min(end, self._size)
            self.frames = max(0, stop - data[0]) // (2 * self.channels)
            return
        try:
            import soundfile

            if isinstance(source, bytes):
                self._stream.seek(0)
                self._library = soundfile.SoundFile(self._stream)
            else:  # by its number: a name may be of any bytes, or end in .raw
                os.lseek(self._stream.fileno(), 0, os.SEEK_SET)
                self._library = soundfile.SoundFile(self._stream.fileno(), closefd=False)
        except Exception as error:  # of a codec: any class, any words
            is_known = magic in (*sound_headers.CHUNKED, b"OggS", b"fLaC")
            raise self._fault(error, "damaged or cut short" if is_known else
                              "not audio that can be read") from error  # fmt: skip
        self.channels, self.rate_hz = self._library.channels, self._library.samplerate
        self.frames = max(0, self._library.frames)
        promised = sound_headers.frames_told(self._library.extra_info) if data is None else 0
        if self.frames < SHORTFALL * promised:
            raise self.cut_short()

    def _fault(self, error: Exception, cause: str) -> InputError:
        fault = getattr(error, "error_string", None) or error
        return InputError(f"{self.where}: {cause} ({fault}); give a wav, flac, mp3 or ogg")

    def cut_short(self) -> InputError:
        return InputError(f"{self.where}: the file is cut short; copy or record it again")

    def _seek(self, first: int) -> int:
        """Go to a frame, or as near before it as the codec can; where that is."""
        if self._start is not None:
            self._stream.seek(self._start + 2 * self.channels * first)
            return first
        if self._library.seekable():
            return int(self._library.seek(first))
        return 0

    def _decoded(self, frames: int) -> np.ndarray:
        """(frames, channels) float32; fewer at the end."""
        if self._start is None:
            return self._library.read(frames, dtype="float32", always_2d=True)
        data = self._stream.read(2 * self.channels * frames)
        whole = len(data) // (2 * self.channels) * self.channels
        values = np.frombuffer(data, "<i2", whole).astype(np.float32)
        values /= 32768.0
        return values.reshape(-1, self.channels)


def resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Change the rate with a Hann-windowed sinc, as the published models were trained.

    samples: (samples,) -> (ceil(samples * to_hz / from_hz),). A ratio too odd for a table of
    kernels (44,101 to 16,000 Hz, say) goes through soxr instead.
    """
    return _resampled([samples], from_hz, to_hz)


def _resampled(blocks: Iterable[Tensor], from_hz: int, to_hz: int) -> Tensor:
    """Blocks of a sound, one behind the other, at another rate."""
    if from_hz == to_hz:
        parts = list(blocks)
        return parts[0] if len(parts) == 1 else torch.cat([torch.zeros(0), *parts])
    divisor = math.gcd(from_hz, to_hz)
    old, new = from_hz // divisor, to_hz // divisor
    if new * (old + 2 * _half_width(old, new)) > _LARGEST_KERNEL:
        return _by_soxr(blocks, from_hz, to_hz)
    half = _half_width(old, new)
    held, count, parts = torch.zeros(half), 0, []
    for block, is_last in _with_last(blocks):
        count += len(block)
        held = torch.cat((held, block, torch.zeros(half + old if is_last else 0)))
        steps = (len(held) - 2 * half) // old
        if steps > 0:
            phases = functional.conv1d(held[None, None], _kernels(old, new), stride=old)
            parts.append(phases[0].T.reshape(-1))
            held = held[steps * old :]
    return torch.cat([torch.zeros(0), *parts])[: math.ceil(new * count / old)]


def _with_last(blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each block, and whether it is the last."""
    before = None
    for block in blocks:
        if before is not None:
            yield before, False
        before = block
    if before is not None:
        yield before, True


def _by_soxr(blocks: Iterable[Tensor], from_hz: int, to_hz: int) -> Tensor:
    import soxr

    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    count, parts = 0, []
    for block, is_last in _with_last(blocks):
        count += len(block)
        parts.append(torch.from_numpy(stream.resample_chunk(block.numpy(), last=is_last)))
    samples, length = torch.cat([torch.zeros(0), *parts]), -(-count * to_hz // from_hz)
    return functional.pad(samples, (0, max(0, length - len(samples))))[:length]


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


def log_mel(samples: Tensor, mels: int = 80, where: object = "audio") -> Tensor:
    """Whisper-style features: (samples,) at 16 kHz -> (samples // 160, mels), 100 frames a second.

    log10 of Slaney mel energies, at most 8 below the loudest of the utterance, then (x + 4) / 4.
    where: what the samples are of, for messages. Raises InputError below one window (25 ms).
    """
    if len(samples) < WINDOW_SAMPLES:
        raise InputError(f"{where}: {len(samples)} samples at 16 kHz, too few; "
                         f"give {WINDOW_SAMPLES} (25 ms) or more")
    edge = WINDOW_SAMPLES // 2  # mirrored on either side: what torch.stft does, at half its cost
    mirrored = torch.cat(
        (samples[1 : edge + 1].flip(0), samples, samples[-edge - 1 : -1].flip(0)))
    frames = mirrored.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)[:-1] * _window()
    parts = torch.view_as_real(torch.fft.rfft(frames)).square_()
    energies = (parts[..., 0] + parts[..., 1]) @ mel_bank(mels)
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
def mel_bank(
    mels: int, rate_hz: int = SAMPLE_RATE_HZ, window_samples: int = WINDOW_SAMPLES,
    highest_hz: float = SAMPLE_RATE_HZ / 2,
) -> Tensor:  # fmt: skip
    """Triangles of equal area on Slaney's scale, from 0 Hz: (window / 2 + 1, mels) float32."""
    top = 15.0 + 27.0 / np.log(6.4) * np.log(highest_hz / 1000.0)
    edges = _mel_to_hz(np.linspace(0.0, top, mels + 2))
    bins = np.linspace(0.0, rate_hz / 2, window_samples // 2 + 1)
    rises = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falls = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rises, falls)).astype(np.float32)
    areas = triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(np.ascontiguousarray(areas.T, dtype=np.float32))
