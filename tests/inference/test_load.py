"""Claims about loading: any source answers alike, types and places are chosen, models share."""

import shutil
from pathlib import Path

import pytest
import torch

from osum_echat import EChat
from osum_echat import device as devices
from osum_echat.errors import InputError
from osum_echat.inference import load
from osum_echat.models import checkpoint
from tests.tiny_model import changed_model
from tests.tiny_network import save_published

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a published file, its tokenizer, voice and settings each elsewhere."""
    home = tmp_path_factory.mktemp("published")
    save_published(home / "weights" / "final.pt", checkpoint.load(model_directory))
    (home / "conf").mkdir()
    shutil.copyfile(model_directory / "model.yaml", home / "conf" / "tiny.yaml")
    (home / "text").mkdir()
    for path in model_directory.glob("*.json"):
        shutil.copyfile(path, home / "text" / path.name)
    return home


def options(home: Path, model_directory: Path) -> dict[str, Path]:
    return {"config": home / "conf" / "tiny.yaml", "tokenizer": home / "text",
            "token2wav": model_directory / "token2wav"}  # fmt: skip


def test_a_published_file_answers_as_the_directory_does(published, model_directory, question_wav):
    ours = EChat.load(model_directory, device="cpu")
    theirs = EChat.load(published / "weights" / "final.pt", device="cpu",
                        **options(published, model_directory))  # fmt: skip
    one, other = (model.reply(question_wav, task="s2s", seed=3) for model in (ours, theirs))
    assert one.speech_tokens == other.speech_tokens and one.text == other.text
    assert theirs.prompts.first("<TRANSCRIBE>")     # of the published tasks


def test_bf16_is_taken_where_asked_for_or_needed(model_directory, monkeypatch, caplog):
    assert EChat.load(model_directory, device="cpu", speaks=False).network.dtype == torch.float32
    small = EChat.load(model_directory, device="cpu", speaks=False, dtype="bf16")
    assert {part.dtype for part in small.network.parameters()} == {torch.bfloat16}
    assert small.network.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    weights = model_directory / "model.safetensors"
    monkeypatch.setattr(devices, "free_memory_bytes", lambda: 20_000)
    assert load.pick_dtype("auto", CPU, weights) == torch.bfloat16
    assert "using bfloat16" in caplog.text
    monkeypatch.setattr(devices, "free_memory_bytes", lambda: None)
    assert load.pick_dtype("auto", CPU, weights) == torch.float32
    with pytest.raises(InputError, match="dtype 'fp8': choose one of auto, bf16, fp32"):
        load.pick_dtype("fp8", CPU, weights)


def test_two_models_share_the_voice_and_what_is_equal(model_directory: Path, tmp_path: Path):
    other = checkpoint.load(model_directory)
    with torch.no_grad():
        other.speech_head.bias.add_(1.0)
    copy = tmp_path / "model"
    shutil.copytree(model_directory, copy, ignore=shutil.ignore_patterns("token2wav", "*.safeten*"))
    checkpoint.save(copy, other)
    shutil.copy(model_directory / "model.yaml", copy)
    first = EChat.load(model_directory, device="cpu")
    second = EChat.load(copy, device="cpu", share=first)
    assert second.voice is first.voice
    mine, theirs = first.network.state_dict(), second.network.state_dict()
    apart = {name for name in mine if mine[name].data_ptr() != theirs[name].data_ptr()}
    assert apart == {"speech_head.bias"}
    assert torch.equal(theirs["speech_head.bias"], mine["speech_head.bias"] + 1)


@pytest.mark.parametrize("key", ["ctc_weight", "hearing"])
def test_the_ctc_weight_is_read_under_its_old_key_too(model_directory, tmp_path: Path, key: str):
    found = load.pretrained.find(changed_model(model_directory, tmp_path / "model", **{key: 0.7}))
    assert load.GenerationSettings.of(found).ctc_weight == 0.7


def test_int8_weights_can_be_a_models_own_choice_on_a_cpu(model_directory, question_wav, tmp_path):
    home = changed_model(model_directory, tmp_path / "model", cpu_dtype="int8")
    small = EChat.load(home, device="cpu")
    assert small.network.text_head is not None and small.network.dtype == torch.float32
    assert small.reply(question_wav, task="s2s", seed=3).wave is not None
    whole = EChat.load(home, device="cpu", speaks=False, dtype="fp32")
    assert whole.network.text_head is None


@pytest.mark.parametrize(("options", "told"), [
    ({"engine": "vlm"}, "engine 'vlm': choose one of own, vllm"),
    ({"engine": "vllm", "dtype": "int8"}, "engine vllm: it has no int8 of ours"),
    ({"engine": "vllm", "keep_lora": True}, "engine vllm: LoRA layers must be merged"),
    ({"recognizer": "both"}, "no Whisper of its own; choose ear"),
    ({"dtype": "int8", "keep_lora": True}, "dtype int8: only on a CPU, and with LoRA merged"),
])  # fmt: skip
def test_what_an_engine_or_a_model_cannot_do_is_refused(model_directory, options, told):
    with pytest.raises(InputError, match=told):
        EChat.load(model_directory, device="cpu", speaks=False, **options)
