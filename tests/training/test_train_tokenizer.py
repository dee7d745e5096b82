"""Claims about the making of the speech tokenizer."""

import importlib.util
from pathlib import Path

import pytest
import torch

from common_utils.token2wav_recipe import train_tokenizer
from common_utils.token2wav_recipe.train_tokenizer import TokenizerSettings
from common_utils.token2wav_recipe.units import SpeechUnits, UnitSettings
from osum_echat import audio
from osum_echat.errors import DataError
from osum_echat.models.encoder import EncoderSettings
from osum_echat.token2wav.voice import SpeechTokenizer

SPEC = importlib.util.spec_from_file_location("voices", Path(__file__).with_name("voices.py"))
voices = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(voices)


def test_the_codes_means_explain_what_they_follow():
    codes = torch.tensor([0, 0, 1, 1])
    assert train_tokenizer.told(torch.tensor([[1.0], [1.0], [5.0], [5.0]]), codes) == 1
    assert train_tokenizer.told(torch.tensor([[1.0], [5.0], [1.0], [5.0]]), codes) == 0


def test_the_projection_keeps_nothing_of_the_place_in_the_clip():
    torch.manual_seed(1)
    place = torch.randn(8)
    layer = torch.randn(200, 8) + 5 * torch.randn(200, 1) * place
    asked = TokenizerSettings(("a",), "b", "c", units=UnitSettings(phonetic=4),
                              position_directions=1)
    found = train_tokenizer.projection(layer - layer.mean(0), torch.randn(50, 1) * place, asked)
    assert found.shape == (8, 4)
    assert (place @ found).abs().max() < 1e-4
    assert ((layer @ found).var(0).sum()) == pytest.approx(1, rel=0.05)


def test_a_unit_has_the_pitch_of_its_forty_milliseconds():
    times = torch.arange(8000) / 16_000
    wave = sum(torch.sin(2 * torch.pi * 150 * k * times) / k for k in range(1, 8))
    hertz = train_tokenizer.unit_pitch(wave)
    assert len(hertz) == 13
    assert hertz[2:-2].median() == pytest.approx(150, rel=0.01)


def test_too_few_recordings_for_the_codes_are_refused(tmp_path, monkeypatch):
    rows = train_tokenizer.read_list(voices.write_voices(tmp_path, {"low": 110.0}, rows=1))
    whisper = SpeechUnits(EncoderSettings(80, 64, 1, 16, 1, 0.0), UnitSettings(1, 4, 4))
    names = {f"encoders{name[6:]}" if name.startswith("blocks") else name: part
             for name, part in whisper.state_dict().items()
             if name.startswith(("embed", "blocks"))}
    monkeypatch.setattr(train_tokenizer, "read_whisper", lambda path: names)
    asked = TokenizerSettings(("a",), "whisper", "out", units=UnitSettings(1, 400, 4),
                              position_directions=2, pitch_steps=2)
    with pytest.raises(DataError, match="for 400 codes"):
        train_tokenizer.make_units(rows, asked)


@pytest.mark.slow
def test_the_exported_file_gives_the_units_for_any_length(tmp_path):
    torch.manual_seed(1)
    model = SpeechUnits(EncoderSettings(80, 64, 1, 64, 2, 0.0), UnitSettings(2, 12, 6)).eval()
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
