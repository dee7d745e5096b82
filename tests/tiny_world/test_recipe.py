"""Claims about the tiny recipe: its steps, Whisper's weights, the parts put together, the card."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from common_utils import whisper_ctranslate2
from common_utils.small_model import ear, pieces
from common_utils.tiny_world import assemble, make, step, text_tokenizer
from osum_echat import EChat, cli
from osum_echat.errors import CheckpointError
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.pretrained import encoder_settings, read_whisper, start_encoder
from osum_echat.paths import TINY

ROOT = Path(__file__).parents[2]


def script(text: str, *words: str) -> list[str]:
    return [sys.executable, "-c", text, *words]


def call(book: Path, name: str, words: list[str], makes: Path | None = None) -> int:
    more = [] if makes is None else [f"--makes={makes}"]
    return step.main([f"--book={book}", *more, name, "--", *words])


def counting(path: Path) -> list[str]:
    """Adds a letter to a file each time it runs."""
    return script("import sys; open(sys.argv[1], 'a').write('x')", str(path))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    book, made = tmp_path / "steps.json", tmp_path / "made"
    for _ in range(3):
        assert call(book, "first", counting(made), made) == 0
    assert made.read_text() == "x"
    made.unlink()
    assert call(book, "first", counting(made), made) == 0 and made.read_text() == "x"


def test_what_lies_behind_a_step_that_ran_again_runs_too(tmp_path: Path, monkeypatch) -> None:
    book, one, two = tmp_path / "steps.json", tmp_path / "one", tmp_path / "two"
    for changed in ("", "", "-X utf8"):
        first = counting(one)
        first[1:1] = changed.split()
        assert call(book, "first", first) == call(book, "second", counting(two)) == 0
    assert (one.read_text(), two.read_text()) == ("xx", "xx")
    with monkeypatch.context() as killed:
        killed.setattr(subprocess, "Popen", Mock(side_effect=KeyboardInterrupt))
        assert call(book, "first", script("other")) == cli.INTERRUPTED
    assert call(book, "first", first) == 0 and one.read_text() == "xxx"


def test_a_step_that_makes_nothing_is_told(tmp_path: Path, capsys) -> None:
    assert call(tmp_path / "steps.json", "first", script(""), tmp_path / "made") == 2
    assert "made is not there" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "words", "told"), [
    (pieces.main, "--llm gone --whisper gone --out out", "gone/tokenizer.json: No such file"),
    (text_tokenizer.main, "--pieces 9 --out out", "--pieces 9: need 320 or more"),
    (make.main, "--size 0 --split train --out out", "--size 0: give 1 or more"),
    (ear.main, f"caches --model {TINY} --out out --lists conf", "no *.list in conf"),
])  # fmt: skip
def test_what_a_step_cannot_use_is_one_line(main, words, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2 and told in capsys.readouterr().err


def test_a_card_has_the_times_of_the_steps_and_keeps_the_rest(tmp_path: Path):
    book = tmp_path / "steps.json"
    book.write_text('{"corpus": {"seconds": 150, "done": true}}')
    step.write_card(tmp_path, [book])
    first = (tmp_path / step.CARD_FILE).read_text()
    assert first.startswith(step.TITLE) and first.endswith("\n| corpus | 2.5 |\n")
    (tmp_path / step.CARD_FILE).write_text(first + "\n## Figures\nnone\n")
    step.write_card(tmp_path, [])
    told = (tmp_path / step.CARD_FILE).read_text()
    assert "corpus" not in told and told.endswith("|---|---|\n\n## Figures\nnone\n")


def test_a_signal_reaches_the_command_and_the_time_is_kept(tmp_path: Path) -> None:
    book, begun, ended = tmp_path / "steps.json", tmp_path / "begun", tmp_path / "ended"
    text = (
        "import signal, sys, time, pathlib\n"
        "def end(*_): pathlib.Path(sys.argv[2]).touch(); sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)"
    )
    words = [sys.executable, "-m", "common_utils.tiny_world.step", f"--book={book}", "first", "--",
             *script(text, str(begun), str(ended))]  # fmt: skip
    running = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    limit = time.monotonic() + 50
    while not begun.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert running.wait(50) == 5 and ended.exists()
    entry = json.loads(book.read_text())["first"]
    assert entry["seconds"] > 0 and not entry["done"]


# A Whisper of CTranslate2: its encoder is the one that the package reads

SETTINGS = EncoderSettings(mels=6, width=64, heads=1, units=16, blocks=2)


def encoder(seed: int) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(SETTINGS).eval()


def ctranslate2_variables(model: Encoder) -> dict[str, np.ndarray]:
    """The weights under the other layout's names; query, key and value in one."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {"decoder/embeddings/weight": np.ones((2, 3), np.float32),
             "encoder/num_heads": np.int16(1)}  # fmt: skip
    layers, norms = {"embed.conv.0": "conv1", "embed.conv.2": "conv2"}, {"after_norm": "layer_norm"}
    for block in range(SETTINGS.blocks):
        own, there = f"encoders.{block}", f"layer_{block}"
        joined = [weights[f"{own}.self_attn.linear_{letter}.weight"] for letter in "qkv"]
        query, value = (weights[f"{own}.self_attn.linear_{letter}.bias"] for letter in "qv")
        found[f"encoder/{there}/self_attention/linear_0/weight"] = np.concatenate(joined)
        bias = np.concatenate((query, np.zeros_like(query), value))
        found[f"encoder/{there}/self_attention/linear_0/bias"] = bias
        layers |= {f"{own}.self_attn.linear_out": f"{there}/self_attention/linear_1",
                   f"{own}.feed_forward.w_1": f"{there}/ffn/linear_0",
                   f"{own}.feed_forward.w_2": f"{there}/ffn/linear_1"}  # fmt: skip
        norms |= {f"{own}.norm1": f"{there}/self_attention/layer_norm",
                  f"{own}.norm2": f"{there}/ffn/layer_norm"}  # fmt: skip
    for names, parts in ((layers, ("weight", "bias")), (norms, ("gamma", "beta"))):
        for ours, theirs in names.items():
            for part, called in zip(("weight", "bias"), parts, strict=True):
                found[f"encoder/{theirs}/{called}"] = weights[f"{ours}.{part}"]
    return found


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray]) -> None:
    kinds = {"float32": 0, "int16": 2, "float16": 4}
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", kinds[value.dtype.name], value.nbytes) + value.tobytes()
    path.write_bytes(data)


def test_the_encoder_gets_its_weights_after_the_conversion(tmp_path: Path):
    source, started = encoder(1), encoder(2)
    write_ctranslate2(tmp_path / "model.bin", ctranslate2_variables(source))
    assert whisper_ctranslate2.main([str(tmp_path)]) == 0
    assert encoder_settings(read_whisper(tmp_path)) == EncoderSettings(6, 64, 1, 16, 2)
    start_encoder(started, tmp_path)
    for name, value in source.state_dict().items():
        assert torch.equal(started.state_dict()[name], value), name


def test_a_file_cut_short_or_missing_is_one_clear_line(tmp_path: Path, capsys):
    path = tmp_path / "model.bin"
    write_ctranslate2(path, ctranslate2_variables(encoder(1)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="ends too early"):
        whisper_ctranslate2.convert(tmp_path)
    assert whisper_ctranslate2.main([str(tmp_path / "gone")]) == 2
    assert "cannot be read" in capsys.readouterr().err


# Parts put together

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
    named = {
        "model": model_directory, "flow": tmp_path / "flow", "vocoder": tmp_path / "vocoder",
        "speech-tokenizer": tmp_path / "any.onnx", "speaker": tmp_path / "any.onnx",
        "samples": split, "count": 2, "out": tmp_path / "shipped",
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
    assert assemble.main(parts) == 2
    assert "flow.safetensors" in capsys.readouterr().err
