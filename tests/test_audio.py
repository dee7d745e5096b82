"""Claims about sound: published features to the last digit, any sound file, clear refusals."""

import io
import math
import struct
import subprocess
import sys
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


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_equals_the_published_features(mels):
    golden = np.load(GOLDENS / "audio.npz")
    features = audio.log_mel(torch.from_numpy(golden[f"wav_{mels}"]), mels)
    apart = (features - torch.from_numpy(golden[f"log_mel_{mels}"])).abs()
    # The published ones are 5e-6 from the exact ones themselves, where a band holds almost nothing.
    assert apart.max() <= 1e-5 and apart.quantile(0.99) <= 1e-6


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


def test_samples_that_are_no_numbers_are_told_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1_000)
    for place in (0, 1_500, 3_199):
        samples = tone()
        samples[place] = np.nan
        with pytest.raises(InputError, match="not numbers"):
            audio.load(wav(samples, subtype="FLOAT"))


def test_a_part_can_be_loaded():
    samples = audio.load(wav(tone(0.5), subtype="FLOAT"), segment_s=(0.1, 0.3))
    torch.testing.assert_close(samples, torch.from_numpy(tone(0.5)[1600:4800]))
    with pytest.raises(InputError, match=r"nothing between 2.0 s and 3.0 s"):
        audio.load(wav(tone()), segment_s=(2.0, 3.0))
    found = [audio.read(wav(tone(0.5)), segment_s=(0.1, end)).findings
             for end in (0.5, 0.55, math.inf, 3.0)]  # fmt: skip
    assert found == [(), (), (), (audio.Finding(audio.BEYOND, "2.50 s of it are not there"),)]


BAD = {"no such file": None, "the file is empty": b"", "not audio": b"hello, this is no sound" * 20,
       "no samples": wav(np.zeros(0, np.float32)),
       "not numbers": wav(np.array([0.0, np.nan, 0.1], np.float32), subtype="FLOAT"),
       "infinite": wav(np.array([0.0, np.inf, 0.1], np.float32), subtype="FLOAT"),
       "cut short": wav(tone())[:3000], "cut short ": wav(tone())[:30],
       "cut short  ": wav(tone(2.0), format="FLAC")[:5000]}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_an_unusable_file_is_refused_with_its_name_and_one_reason(reason, tmp_path):
    path = tmp_path / "question.wav"
    if BAD[reason] is not None:
        path.write_bytes(BAD[reason])
    with pytest.raises(InputError, match=rf"question\.wav: .*{reason.strip()}"):
        audio.load(path)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_wavs_of_any_kind_are_read_as_the_library_reads_them(channels, kind):
    rng = np.random.default_rng(channels)
    file = io.BytesIO()
    samples = rng.uniform(-1, 1, (1_001, channels))
    soundfile.write(file, samples, 8_000, format="WAV", subtype=kind)
    file.seek(0)
    wanted, _ = soundfile.read(file, dtype="float32", always_2d=True)
    found = audio.read(file.getvalue(), None)
    assert found.rate_hz == 8_000
    torch.testing.assert_close(found.samples, torch.from_numpy(wanted).mean(1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("segment_s", [None, (0.5, 1.0), (0.5, 9.0)])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_length_is_known_before_decoding(rate, kind, segment_s, tmp_path):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.zeros(rate + 77), rate, format=kind)
    for source in (path, path.read_bytes()):
        assert audio.length(source, 16_000, segment_s) == len(audio.load(source, 16_000, segment_s))


CODECS = [("WAV", "GSM610"), ("WAV", "G721_32"), ("WAV", "NMS_ADPCM_16"), ("AU", "G721_32"),
          ("WAV", "IMA_ADPCM"), ("XI", "DPCM_16"), ("MP3", None), ("OGG", "OPUS"),
          ("OGG", "VORBIS"), ("RF64", "PCM_16"), ("W64", "PCM_24"), ("NIST", "PCM_16"),
          ("CAF", "ALAC_16")]  # fmt: skip


@pytest.mark.parametrize(("form", "codec"), CODECS)
def test_any_codec_is_read_whole_and_in_parts(form, codec, tmp_path):
    rate = 44_100 if form == "XI" else 8_000
    path = tmp_path / "sound.raw"  # what is inside counts, not the name
    path.write_bytes(wav(tone(1.0, rate), rate, format=form, subtype=codec))
    whole = audio.load(path)
    assert torch.equal(whole, audio.load(path.read_bytes())) and abs(len(whole) - 16_000) < 1_200
    part = audio.load(path, segment_s=(0.5, 0.75))
    assert len(part) == audio.length(path, segment_s=(0.5, 0.75)) == 4_000
    if codec not in ("OPUS", None):  # which begin anew where they are sought
        assert (part - whole[8_000:12_000])[200:-200].abs().max() < 0.02


ENDS = [("WAV", "PCM_16"), ("WAV", "GSM610"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
        ("AU", "PCM_16"), ("NIST", "PCM_16"), ("AIFF", "PCM_16"), ("CAF", "PCM_16"),
        ("OGG", "OPUS"), ("OGG", "VORBIS"), ("FLAC", "PCM_16"), ("NIST", "ULAW"), ("MP3", None),
        ("VOC", "PCM_16"), ("VOC", "ULAW"), ("AVR", "PCM_16"), ("MPC2K", "PCM_16"),
        ("MAT4", "FLOAT"), ("MAT5", "PCM_16"), ("WVE", "ALAW")]  # fmt: skip


@pytest.mark.parametrize(("form", "codec"), ENDS)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_an_early_end_is_told_in_every_format(form, codec, kept):
    data = wav(np.concatenate([tone(4.0)] * 4), 16_000, format=form, subtype=codec)
    assert audio.read(data).findings == ()
    with pytest.raises(InputError, match="cut short"):
        audio.load(data[: int(kept * len(data))])


@pytest.mark.parametrize("promised", [44, 8, -4, -6_400, 0xFFFF_FFFF - 6_400, 0x7FFF_FFF0 - 6_400])
def test_a_header_a_few_bytes_off_or_of_unknown_length_is_read(promised):
    data = bytearray(wav(tone()))
    struct.pack_into("<I", data, 40, 6_400 + promised)
    assert abs(len(audio.load(bytes(data))) - 3_200) <= 2


def test_the_limit_is_that_of_the_part_and_known_from_the_header(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(601 * 1_000, np.int16), 1_000)
    for ask in (audio.load, audio.length):
        with pytest.raises(InputError, match=r"long\.flac: 601 s of audio; cut it to 10 minutes"):
            ask(path)
    assert len(audio.load(path, segment_s=(600.0, 600.5))) == 8_000


def test_packed_silence_of_many_channels_needs_little_memory(tmp_path):
    path = tmp_path / "packed.flac"
    soundfile.write(path, np.zeros((192_000 * 20, 8), np.int16), 192_000)
    code = ("import resource, sys, torch; from pathlib import Path; from osum_echat import audio;"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
            "import soundfile; audio.resample(torch.zeros(9000), 192000, 16000); idle = peak();"
            "audio.load(Path(sys.argv[1])); print(peak() - idle)")  # fmt: skip
    used = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert int(used.stdout) < 100_000  # kB; all of it decoded at once is 123 MB and more


@pytest.mark.parametrize(("samples", "kind", "peak"), [
    (np.round(tone() * 32_768), audio.RESCALED, 0.3),
    (np.round(tone() * 20) + 0.0, audio.RESCALED, 6 / 32_768),
    (tone() * 2.0**23, audio.RESCALED, 0.3), (tone() * 100, audio.LOUD, 30.0),
    (np.stack([tone(), -tone()], 1), audio.CANCELLING, 0.3),
    (np.zeros(3_200, np.float32), audio.SILENCE, 0.0),
    (np.full((3_200, 2), 0.25, np.float32), audio.SILENCE, 0.25), (tone() * 4, None, 1.2),
    (np.stack([tone(), tone() / 9], 1), None, 0.3 * 5 / 9),
])  # fmt: skip
def test_sound_that_is_no_sound_is_told(samples, kind, peak):
    sound = audio.read(wav(samples.astype(np.float32), subtype="FLOAT"))
    assert [one.kind for one in sound.findings] == ([kind] if kind else [])
    assert float(sound.samples.abs().max()) == pytest.approx(peak, rel=1e-2)


def test_an_mp3_that_ends_within_a_frame_is_told():
    data = wav(tone(4.0), format="MP3")
    plain = data[data.index(b"\xff\xf3", 4) :]      # without the frame that tells the length
    assert audio.read(plain).findings == audio.read(plain + b"TAG" + bytes(125)).findings == ()
    for cut in (1, 100, len(plain) // 2 + 1):
        (finding,) = audio.read(plain[:-cut]).findings
        assert finding.kind == audio.OPEN_END
