"""Claims about sound: published features to the last digit, any sound file, clear refusals."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from osum_echat import audio
from osum_echat.errors import InputError

GOLDENS = Path(__file__).parent / "goldens"


def wav(samples, rate=16_000, **kwargs) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **kwargs})
    return file.getvalue()


def tone(seconds=0.2, rate=16_000) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def test_log_mel_equals_the_published_features():
    golden = np.load(GOLDENS / "audio.npz")
    features = audio.log_mel(torch.from_numpy(golden["wav_80"]))
    torch.testing.assert_close(features, torch.from_numpy(golden["log_mel_80"]), atol=1e-6, rtol=0)
    wide = audio.log_mel(torch.from_numpy(golden["wav_128"]), 128)
    torch.testing.assert_close(wide, torch.from_numpy(golden["log_mel_128"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampling_equals_the_published_kernel(rate):
    golden = np.load(GOLDENS / "audio.npz")
    result = audio.resample(torch.from_numpy(golden[f"in_{rate}"]), rate, 16_000)
    torch.testing.assert_close(result, torch.from_numpy(golden[f"out_{rate}"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11_025, 44_101, 96_000])
def test_any_rate_keeps_the_tone_and_the_length(rate):
    result = audio.resample(torch.from_numpy(tone(0.5, rate)), rate, 16_000)
    assert len(result) == 8000
    middle, whole = slice(1000, 7000), torch.from_numpy(tone(0.5))
    torch.testing.assert_close(result[middle], whole[middle], atol=2e-3, rtol=0)


def test_features_come_at_100_a_second_without_the_last_frame():
    assert audio.log_mel(torch.zeros(16_079)).shape == (100, 80)
    assert torch.isfinite(audio.log_mel(torch.zeros(400))).all()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_averaged_in_any_sample_format(subtype, channels):
    shifts = np.linspace(-0.2, 0.2, channels) if channels > 1 else np.zeros(1)
    samples, rate = audio.decode(wav(tone(rate=96_000)[:, None] + shifts, 96_000, subtype=subtype))
    assert rate == 96_000 and samples.dtype == torch.float32
    torch.testing.assert_close(samples, torch.from_numpy(tone(rate=96_000)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_other_formats_are_read_too(form, tmp_path):
    path = tmp_path / "sound"
    path.write_bytes(wav(tone(), format=form, subtype=None))
    assert abs(len(audio.load(path)) - 3200) < 1200


def test_a_part_can_be_loaded():
    samples = audio.load(wav(tone(0.5), subtype="FLOAT"), segment_s=(0.1, 0.3))
    torch.testing.assert_close(samples, torch.from_numpy(tone(0.5)[1600:4800]))
    with pytest.raises(InputError, match=r"nothing between 2.0 s and 3.0 s"):
        audio.load(wav(tone()), segment_s=(2.0, 3.0))


def test_a_wav_of_unknown_length_is_read_to_its_end():
    data = bytearray(wav(tone()))
    struct.pack_into("<I", data, 40, 0xFFFF_FFFF)
    assert len(audio.load(bytes(data))) == 3200


def test_over_ten_minutes_is_refused_before_it_is_read():
    with pytest.raises(InputError, match=r"601 s of audio; cut it to 10 minutes"):
        audio.decode(wav(np.zeros(601 * 100, np.int16), 100))


BAD = {
    "the file is empty": b"",
    "not audio": b"hello, this is no sound" * 20,
    "no samples": wav(np.zeros(0, np.float32)),
    "not numbers": wav(np.array([0.0, np.nan, 0.1], np.float32), subtype="FLOAT"),
    "infinite": wav(np.array([0.0, np.inf, 0.1], np.float32), subtype="FLOAT"),
    "cut short": wav(tone())[:3000],
    "cut short ": wav(tone())[:30],
    "cut short  ": wav(tone(2.0), format="FLAC")[:5000],
}


@pytest.mark.parametrize("reason", BAD)
def test_an_unusable_file_is_refused_with_its_name_and_one_reason(reason, tmp_path):
    path = tmp_path / "question.wav"
    path.write_bytes(BAD[reason])
    with pytest.raises(InputError, match=rf"question\.wav: .*{reason.strip()}"):
        audio.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone\.wav: no such file"):
        audio.load(tmp_path / "gone.wav")
    with pytest.raises(InputError, match="cannot be read"):
        audio.load(tmp_path)


def test_too_short_for_one_window_is_refused():
    with pytest.raises(InputError, match="of 399 samples at 16 kHz is too short"):
        audio.log_mel(torch.zeros(399))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_wavs_of_any_kind_are_read_as_the_library_reads_them(channels: int, kind: str) -> None:
    rng = np.random.default_rng(channels)
    file = io.BytesIO()
    samples = rng.uniform(-1, 1, (1_001, channels))
    soundfile.write(file, samples, 8_000, format="WAV", subtype=kind)
    file.seek(0)
    wanted, _ = soundfile.read(file, dtype="float32", always_2d=True)
    found, rate = audio.decode(file.getvalue())
    assert rate == 8_000
    torch.testing.assert_close(found, torch.from_numpy(wanted).mean(1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("segment_s", [None, (0.5, 1.0), (0.5, 9.0)])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_length_is_known_before_decoding(
    rate: int, kind: str, segment_s: tuple[float, float] | None, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.zeros(rate + 77), rate, format=kind)
    for source in (path, path.read_bytes()):
        assert audio.length(source, 16_000, segment_s) == len(audio.load(source, 16_000, segment_s))
