"""Claims about the small trainings of token to wav: they learn, resume exactly, refuse bad rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from common_utils.token2wav_recipe import pitch, runs, train_flow, train_speaker, train_tokenizer
from common_utils.token2wav_recipe import train_vocoder as vocoders
from common_utils.token2wav_recipe.runs import LimitSettings
from common_utils.token2wav_recipe.train_flow import FlowTraining
from common_utils.token2wav_recipe.train_speaker import SpeakerSettings, SpeakerTraining
from common_utils.token2wav_recipe.train_tokenizer import TokenizerSettings, UnitSettings
from common_utils.token2wav_recipe.train_vocoder import VocoderTraining
from osum_echat import audio, weights
from osum_echat.errors import ConfigError, DataError
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.settings import parse, read_mapping
from osum_echat.token2wav.nsf_vocos import NsfVocos, NsfVocosSettings
from osum_echat.token2wav.voice import SpeakerEncoder, SpeechTokenizer, prompt_mel

CONF = Path(__file__).parents[2] / "conf"
KINDS = {"flow": FlowTraining, "speaker": SpeakerTraining, "vocoder": VocoderTraining,
         "tokenizer": TokenizerSettings}  # fmt: skip
FILES = sorted(CONF.glob("*/token2wav_*.yaml"))
WHISPER = Encoder(EncoderSettings(80, 64, 1, 16, 1, 0.0)).state_dict()
RATE_HZ = 22_050
CODES = 11
SIZES = {
    "codes": CODES,
    "conformer": {"input_width": 16, "width": 16, "heads": 2, "feed_forward": 24, "blocks": 1},
    "estimator": {"channels": [16, 16], "heads": 2, "head_width": 8, "transformers": 1,
                  "mid_blocks": 1},
    "mel_mean": -5.5, "mel_scale": 2.2,
}  # fmt: skip


def write_voices(folder: Path, pitches: dict[str, float], rows: int) -> Path:
    """`rows` wavs of 0.7 s for every voice, a buzz at its pitch; the list of them."""
    rng = np.random.default_rng(5)
    lines = []
    for voice, hertz in pitches.items():
        for row in range(rows):
            times = np.arange(round(0.7 * RATE_HZ)) / RATE_HZ
            wave = sum(np.sin(2 * np.pi * hertz * k * times) / k for k in range(1, 8)) * 0.1
            wave += 0.002 * rng.normal(size=len(wave))
            name = f"{voice}_{row}.wav"
            soundfile.write(folder / name, wave.astype(np.float32), RATE_HZ)
            lines.append(json.dumps({"key": f"{voice}_{row}", "wav": name, "voice": voice}))
    path = folder / "voices.list"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Lists and settings

@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_recipes_can_be_read(path: Path):
    assert runs.load(KINDS[path.stem.removeprefix("token2wav_")], path, ["seed=3"]).seed == 3


# The flow

def flow_training(folder: Path, *overrides: str, row: dict[str, object] | None = None):
    """Of four recordings of about a second, whose tokens tell the loudness."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(4):
        tokens = rng.integers(0, CODES, 24)
        level = np.repeat(10.0 ** (tokens / 5 - 3), 882)
        soundfile.write(folder / f"{number}.wav", level * rng.normal(0, 0.1, len(level)), RATE_HZ)
        extra = {"speech_token": tokens.tolist()}
        lines.append({"key": str(number), "wav": f"{number}.wav", "extra": extra} | (row or {}))
    (folder / "voice.list").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    raw = {"data": [str(folder / "voice.list")], "output": str(folder / "out"), "flow": SIZES,
           "limits": {"steps": 2}, "batch_tokens": 40, "crop_tokens": [10, 20],
           "held_out_tokens": 20}  # fmt: skip
    (folder / "flow.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return runs.load(FlowTraining, folder / "flow.yaml", overrides)


def test_a_resumed_flow_training_ends_with_the_same_weights(tmp_path: Path):
    whole = flow_training(tmp_path, "limits.steps=4", f"output={tmp_path / 'whole'}")
    first = load_file(train_flow.train(whole))
    train_flow.train(flow_training(tmp_path))
    second = load_file(train_flow.train(flow_training(tmp_path, "limits.steps=4")))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_settings_in_one_output_are_told_and_go_on_where_that_is_wanted(tmp_path: Path):
    train_flow.train(flow_training(tmp_path))
    with pytest.raises(ConfigError, match=r"drop 0\.2, now 0\.5\. Begin .*limits\.changed=true"):
        train_flow.train(flow_training(tmp_path, "limits.steps=3", "drop=0.5"))
    wanted = ("limits.steps=3", "drop=0.5", "limits.changed=true")
    assert train_flow.train(flow_training(tmp_path, *wanted)).is_file()
    asked = flow_training(tmp_path, *wanted)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    train_flow.train(asked).unlink()
    assert train_flow.train(asked).is_file()        # made again
    assert not (tmp_path / "out" / "metrics.jsonl").read_bytes()
    (tmp_path / "voice.list").unlink()              # what is finished reads no data
    assert train_flow.train(asked).is_file()


@pytest.mark.parametrize("setting", [
    "limits.log_steps=0", "limits.steps=-2", "held_out_tokens=-5", "crop_tokens=[0]",
    "average=2.0", "precision=fp8",
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(setting: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"need|fp32|must hold"):
        flow_training(tmp_path, setting)


def test_a_training_that_diverged_ends_and_leaves_what_was_saved(tmp_path: Path):
    kept = train_flow.train(flow_training(tmp_path)).read_bytes()
    rates = ("limits.steps=30", "limits.changed=true", "schedule={kind: constant, rate: 1e12}")
    with pytest.raises(DataError, match=r"10 steps in a row .* not finite"):
        train_flow.train(flow_training(tmp_path, *rates))
    assert (tmp_path / "out" / "flow.safetensors").read_bytes() == kept


def test_the_flows_losses_fall(tmp_path: Path):
    options = ("limits.steps=30", "limits.log_steps=5", "schedule.warmup_steps=2",
               "schedule.rate=1e-2")  # fmt: skip
    output = train_flow.train(flow_training(tmp_path, *options)).parent
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "matching" in line]
    assert steps[-1]["mu"] < 0.9 * steps[0]["mu"] and steps[-1]["matching"] < steps[0]["matching"]
    assert lines[-1]["held_out_mu"] > 0


def test_crops_keep_tokens_and_mel_together(tmp_path: Path):
    recordings = train_flow.record(flow_training(tmp_path))
    assert len(recordings.mel) == 4 * 24 * 441 // 128
    crop = recordings.batch([24], 20)
    assert crop.mel.shape == (1, 68, 80)
    samples = torch.from_numpy(soundfile.read(tmp_path / "1.wav", dtype="float32")[0])
    assert (crop.mel[0] - prompt_mel(samples)[0, :68]).abs().max() < 0.01
    assert crop.tokens[0].tolist() == recordings.tokens[24:44].tolist()


@pytest.mark.parametrize(("row", "message"), [
    ({"extra": {}}, "no extra.speech_token"),
    ({"extra": {"speech_token": [CODES]}}, f"ids from 0 to {CODES - 1}"),
    ({"extra": {"speech_token": ["a"]}}, "line 1: speech_token must be a list of whole numbers"),
    ({"extra": {"speech_token": [1] * 60}}, r"2\.40 s of speech tokens for 0\.96 s of sound"),
    ({"wav": 5}, "line 1: wav is 5"), ({"wav": None}, "no `wav`"), ({"extra": [1]}, "extra is a l"),
    ({"start": 0.1, "end": 0.11}, r"line 1: .*0\.wav: 0\.010 s of sound, need"),
])  # fmt: skip
def test_a_bad_row_is_named(row: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        train_flow.record(flow_training(tmp_path, row=row))


# The speech tokenizer

def test_the_projection_keeps_nothing_of_the_place_in_the_clip():
    torch.manual_seed(1)
    place = torch.randn(8)
    layer = torch.randn(200, 8) + 5 * torch.randn(200, 1) * place
    asked = TokenizerSettings(("a",), "b", "c", units=UnitSettings(phonetic=4),
                              position_directions=1)  # fmt: skip
    found = train_tokenizer.projection(layer - layer.mean(0), torch.randn(50, 1) * place, asked)
    assert found.shape == (8, 4) and (place @ found).abs().max() < 1e-4
    assert ((layer @ found).var(0).sum()) == pytest.approx(1, rel=0.05)


def test_what_was_learnt_makes_the_same_units_on_the_same_whisper(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(train_tokenizer, "read_whisper", lambda path: WHISPER)
    units = train_tokenizer.on_whisper(tmp_path, UnitSettings(layers=1, codes=4, phonetic=8))
    for buffer in units.buffers():
        buffer.normal_()
    train_tokenizer.save_learnt(units, tmp_path / "units.safetensors")
    again = train_tokenizer.with_learnt(tmp_path, tmp_path / "units.safetensors")
    feats, length = torch.randn(1, 80, 200), torch.tensor([200])
    with torch.no_grad():
        assert torch.equal(again(feats, length), units(feats, length))


@pytest.mark.slow
def test_the_exported_tokenizer_gives_the_units_for_any_length(tmp_path: Path):
    torch.manual_seed(1)
    sizes = EncoderSettings(80, 64, 1, 64, 2, 0.0), UnitSettings(2, 12, 6)
    model = train_tokenizer.SpeechUnits(*sizes).eval()
    model.projection.normal_()
    model.codebook.normal_()
    train_tokenizer.export_units(model, tmp_path / "units.onnx")
    listen, same, total = SpeechTokenizer(tmp_path / "units.onnx"), 0, 0
    for samples in (torch.randn(size) for size in (1600, 16_001, 40_000)):
        feats = audio.log_mel(samples).T[None]
        expected = model(feats, torch.tensor([feats.shape[2]]).int())[0].tolist()
        found = listen(samples)
        assert len(found) == len(expected)
        same += sum(one == other for one, other in zip(found, expected, strict=True))
        total += len(found)
    assert same / total > 0.9           # weights rounded to bytes move a few


# The speaker encoder

def speaker_training(folder: Path, pitches: dict[str, float]) -> SpeakerTraining:
    rows = write_voices(folder, pitches, rows=3)
    return SpeakerTraining(
        lists=(str(rows),), output=str(folder / "out"), limits=LimitSettings(steps=2),
        speaker=SpeakerSettings(width=8), batch=4, crop_frames=20,
    )  # fmt: skip


def test_voices_are_told_apart_after_a_few_steps(tmp_path: Path):
    asked = speaker_training(tmp_path, {"low": 90.0, "high": 310.0})
    trainer = train_speaker.SpeakerTrainer(asked, train_speaker.read(asked))
    for _ in range(30):
        trainer.step()
    assert trainer.score()["held_out_right"] == 1


@pytest.mark.slow
def test_the_exported_speaker_encoder_hears_any_length(tmp_path: Path):
    path = train_speaker.train(speaker_training(tmp_path, {"low": 90.0, "high": 310.0}))
    listen = SpeakerEncoder(path)
    assert all(listen(torch.randn(size)).shape == (1, 192) for size in (4000, 16000))


# The vocoder

def vocoder_training(folder: Path, name: str, steps: int, **more: object) -> VocoderTraining:
    rows = folder / "voices.list"
    if not rows.is_file():
        write_voices(folder, {"low": 110.0}, rows=3)
    return VocoderTraining(
        lists=(str(rows),), output=str(folder / name),
        limits=LimitSettings(steps=steps, log_steps=1),
        vocoder=NsfVocosSettings(width=8, blocks=1, pitch_width=8, pitch_blocks=1), batch=2,
        crop_frames=16,
        pitch_crop_frames=16, pitch_updates=1, held_out=1, precision="fp32", **more
    )  # fmt: skip


def test_a_resumed_vocoder_training_ends_where_an_unbroken_one_does(tmp_path: Path):
    path = vocoders.train(vocoder_training(tmp_path, "whole", 4))
    whole = weights.read(path)
    vocoders.train(vocoder_training(tmp_path, "parts", 2))
    parts = weights.read(vocoders.train(vocoder_training(tmp_path, "parts", 4)))
    assert all(torch.equal(part, parts[name]) for name, part in whole.items())
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    raw = read_mapping(path.with_name("vocoder.yaml"))
    vocoder = NsfVocos(parse(NsfVocosSettings, raw[raw["vocoder"]], "vocoder.yaml"))
    weights.fill(vocoder, {name: part.float() for name, part in whole.items()}, str(path))


def test_the_true_pitch_is_that_of_the_recording_whatever_its_key(tmp_path: Path):
    write_voices(tmp_path, {"low": 110.0, "high": 220.0}, rows=1)
    rows = [{"key": "same", "wav": "low_0.wav"}, {"key": "same", "wav": "high_0.wav"},
            {"key": "same", "wav": "low_0.wav", "start": 0.2, "end": 0.4}]  # fmt: skip
    (tmp_path / "voices.list").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = vocoders.read(vocoder_training(tmp_path, "out", 1))
    told = {(len(one.hertz), round(float(one.hertz.median()), -1)) for one in found}
    assert told == {(60, 110.0), (60, 220.0), (17, 110.0)}


# The pitch tracker

TRACKED_HZ, HOP_SAMPLES = 16_000, 160


def buzz(hertz: np.ndarray) -> np.ndarray:
    """Ten harmonics along a pitch given for each sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / TRACKED_HZ
    return sum(np.sin(number * phase) / number for number in range(1, 11)).astype(np.float32)


def test_a_glide_is_followed_hop_by_hop_and_noise_and_silence_are_unvoiced():
    hertz = np.linspace(90, 160, TRACKED_HZ // 2)
    found = pitch.track(buzz(hertz), TRACKED_HZ, HOP_SAMPLES)[5:-5]
    true = hertz[HOP_SAMPLES // 2 :: HOP_SAMPLES][5:-5]
    assert np.abs(1200 * np.log2(found / true)).max() < 40
    noise = np.random.default_rng(1).normal(0, 0.1, TRACKED_HZ // 2).astype(np.float32)
    assert (pitch.track(noise, TRACKED_HZ, HOP_SAMPLES) > 0).mean() < 0.1
    silence = np.zeros(TRACKED_HZ // 4, np.float32)
    assert not pitch.track(silence, TRACKED_HZ, HOP_SAMPLES).any()
