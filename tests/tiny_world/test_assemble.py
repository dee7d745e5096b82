"""Claims about putting a model's parts together: what comes out loads, small enough to ship."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from common_utils.tiny_world import assemble
from osum_echat import EChat, cli
from osum_echat.errors import CheckpointError
from osum_echat.token2wav.voice import VoicePrompt

LABELS = {"age": "ADULT", "gender": "MALE", "emotion": "NEUTRAL", "event": "OTHER"}


@pytest.fixture
def parts(
    model_directory: Path, question_wav: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The options that name trained parts, as the stages leave them."""
    raw = yaml.safe_load((model_directory / "token2wav" / "token2wav.yaml").read_text())
    for part, keys in {"flow": ["flow"], "vocoder": ["vocoder", "nsf_vocos"]}.items():
        folder = tmp_path / part
        folder.mkdir()
        shutil.copy(model_directory / "token2wav" / f"{part}.safetensors", folder)
        (folder / f"{part}.yaml").write_text(yaml.safe_dump({key: raw[key] for key in keys}))
    (tmp_path / "any.onnx").write_bytes(b"onnx")
    split = tmp_path / "split"
    split.mkdir()
    sound = question_wav.read_bytes()
    rows = []
    for number, emotion in enumerate(("NEUTRAL", "NEUTRAL", "SAD")):
        (split / f"{number}.wav").write_bytes(sound)
        labels = LABELS | {"emotion": emotion}
        rows.append({"kind": "single", "wav": f"{number}.wav", "labels": labels,
                     "user_text": "hello", "reply_text": "Hi.", "reply_style": "CALM"})  # fmt: skip
    (split / "exchanges.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(assemble, "LEAST_S", 0.5)
    monkeypatch.setattr(assemble, "SpeechTokenizer", lambda path: None)
    monkeypatch.setattr(assemble, "SpeakerEncoder", lambda path: None)
    monkeypatch.setattr(assemble, "make_prompt", lambda *args: VoicePrompt.absent())
    named = {
        "model": model_directory, "flow": tmp_path / "flow", "vocoder": tmp_path / "vocoder",
        "speech-tokenizer": tmp_path / "any.onnx", "speaker": tmp_path / "any.onnx",
        "voice": question_wav, "samples": split, "count": 2, "out": tmp_path / "shipped",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in named.items()]


def test_the_parts_become_a_model_that_answers_with_the_most_telling_sample_first(parts, tmp_path):
    assemble.main(parts)
    shipped = tmp_path / "shipped"
    reply = EChat.load(shipped, device="cpu").reply(shipped / "samples/question.wav", task="s2s")
    assert reply.wave is not None
    kinds = {tensor.dtype for tensor in load_file(shipped / "model.safetensors").values()}
    assert kinds == {torch.float16}
    rows = [json.loads(line) for line in (shipped / "samples/samples.jsonl").open()]
    assert [row["wav"] for row in rows] == ["question.wav", "question_2.wav"]
    assert rows[0]["labels"]["emotion"] == "SAD"


def test_a_part_that_is_missing_is_told_in_one_line(parts, tmp_path, capsys):
    (tmp_path / "flow" / "flow.safetensors").unlink()
    assert cli.run("assemble", lambda: assemble.main(parts)) == 2
    assert "flow.safetensors" in capsys.readouterr().err


def test_what_is_too_large_does_not_ship(tmp_path, monkeypatch):
    (tmp_path / "big").write_bytes(b"0" * 1000)
    monkeypatch.setattr(assemble, "LARGEST_FILE_MB", 0.0005)
    with pytest.raises(CheckpointError, match="may ship"):
        assemble.check_sizes(tmp_path)
