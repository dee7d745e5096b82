"""Claims about the training of a flow: it learns, resumes exactly, and refuses bad rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from common_utils.token2wav_recipe.runs import LimitSettings
from common_utils.token2wav_recipe.train_flow import fit, load, record, to_the_limit, train
from osum_echat.errors import ConfigError, DataError
from osum_echat.token2wav.voice import prompt_mel
from osum_echat.training.scheduler import ScheduleSettings

CODES = 11
SIZES = {
    "codes": CODES,
    "conformer": {"input_width": 16, "width": 16, "heads": 2, "feed_forward": 24, "blocks": 1},
    "estimator": {"channels": [16, 16], "heads": 2, "head_width": 8, "transformers": 1,
                  "mid_blocks": 1},
    "mel_mean": -5.5, "mel_scale": 2.2,
}  # fmt: skip


def write_list(folder: Path, row: dict[str, object] | None = None) -> Path:
    """Four recordings of about a second, whose tokens tell the loudness."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(4):
        tokens = rng.integers(0, CODES, 24)
        level = np.repeat(10.0 ** (tokens / 5 - 3), 882)
        soundfile.write(folder / f"{number}.wav", level * rng.normal(0, 0.1, len(level)), 22_050)
        extra = {"speech_token": tokens.tolist()}
        lines.append({"key": str(number), "wav": f"{number}.wav", "extra": extra} | (row or {}))
    path = folder / "voice.list"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def write_config(folder: Path, row: dict[str, object] | None = None) -> Path:
    raw = {
        "data": [str(write_list(folder, row))], "output": str(folder / "out"), "flow": SIZES,
        "limits": {"steps": 2}, "batch_tokens": 40, "crop_tokens": [10, 20],
        "held_out_tokens": 20,
    }  # fmt: skip
    path = folder / "flow.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path):
    config = write_config(tmp_path)
    whole = train(load(config, ["limits.steps=4", f"output={tmp_path / 'whole'}"]))
    train(load(config, ["limits.steps=2"]))
    parts = train(load(config, ["limits.steps=4"]))
    first, second = load_file(whole), load_file(parts)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_losses_fall(tmp_path: Path):
    options = ["limits.steps=30", "limits.log_steps=5"]
    options += ["schedule.warmup_steps=2", "schedule.rate=1e-2"]
    output = train(load(write_config(tmp_path), options)).parent
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "matching" in line]
    assert steps[-1]["mu"] < 0.9 * steps[0]["mu"]
    assert steps[-1]["matching"] < steps[0]["matching"]
    assert lines[-1]["held_out_mu"] > 0


def test_crops_keep_tokens_and_mel_together(tmp_path: Path):
    recordings = record(load(write_config(tmp_path), []))
    assert len(recordings.mel) == 4 * 24 * 441 // 128
    crop = recordings.crop(24, 20)
    assert crop.mel.shape == (1, 68, 80)
    samples = torch.from_numpy(soundfile.read(tmp_path / "1.wav", dtype="float32")[0])
    assert (crop.mel[0] - prompt_mel(samples)[0, :68]).abs().max() < 0.01
    assert crop.tokens[0].tolist() == recordings.tokens[24:44].tolist()


def test_a_short_mel_repeats_its_last_frame():
    mel = torch.arange(6.0).view(3, 2)
    assert fit(mel, 5)[3:].tolist() == [[4, 5], [4, 5]]
    assert fit(mel, 2).tolist() == [[0, 1], [2, 3]]


def test_a_cosine_without_an_end_falls_to_the_limit():
    schedule = ScheduleSettings(kind="cosine")
    assert to_the_limit(schedule, LimitSettings(minutes=7)).budget_minutes == 7
    assert to_the_limit(schedule, LimitSettings(steps=9)).total_steps == 9


@pytest.mark.parametrize(
    ("row", "message"),
    [({"extra": {}}, "no extra.speech_token"),
     ({"extra": {"speech_token": [CODES]}}, f"ids from 0 to {CODES - 1}")],
)  # fmt: skip
def test_a_bad_row_is_named(row: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        record(load(write_config(tmp_path, row), []))


def test_a_wrong_setting_is_refused(tmp_path: Path):
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'crop_tokens'"):
        load(config, ["crop_token=[3]"])
    with pytest.raises(ConfigError, match="batch_tokens 5 must hold the longest crop"):
        load(config, ["batch_tokens=5"])
    with pytest.raises(DataError, match="too few for held_out_tokens 90"):
        train(load(config, ["held_out_tokens=90"]))


def test_the_tiny_recipe_can_be_read():
    recipe = Path(__file__).parents[2] / "conf" / "tiny" / "token2wav_flow.yaml"
    assert load(recipe, ["limits.steps=1"]).limits.steps == 1
