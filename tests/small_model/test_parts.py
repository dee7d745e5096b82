"""What the small model is made from: packages of three kinds, and texts that a hash parts."""

import io
import json
import math
import re
import tarfile
import zipfile

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from common_utils.small_model import language_model, texts
from common_utils.small_model.parts import as_qwen2
from common_utils.tiny_world.assets import contents, single, unpack_all
from osum_echat.files import sha256_of
from osum_echat.generation.ctc_beam import Bigrams
from osum_echat.paths import HOUSE
from osum_echat.weights import write_safetensors_file


def test_parts_are_taken_from_a_folder_whatever_their_kind(tmp_path):
    one, two = tmp_path / "one_thing-1.0-py3-none-any.whl", tmp_path / "two-2.0.tgz"
    with zipfile.ZipFile(one, "w") as wheel:
        wheel.writestr("one/data.txt", "one")
        wheel.writestr("other/data.txt", "other")
    with tarfile.open(two, "w:gz") as archive:
        for name in ("package/voices/a.bin", "package/README"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    unpack_all(tmp_path / "parts", tmp_path, [
        single("one-thing", "one/", "one-thing", "1.0", sha256_of(one)),
        single("two", "package/voices/", "two", "2.0", sha256_of(two), "npm"),
    ])  # fmt: skip
    assert (tmp_path / "parts/one-thing/data.txt").read_text() == "one"
    assert [file.name for file in (tmp_path / "parts/two").iterdir()] == ["a.bin"]
    assert [name for name, _ in contents(two)] == ["package/voices/a.bin", "package/README"]


def test_what_reads_the_packed_llm_is_installed_with_the_demo():
    required = (HOUSE / "requirements.txt").read_text("utf-8")
    for name in ("gguf", "accelerate"):   # transformers asks both for gguf_file=
        assert re.search(rf"^{name}==", required, re.MULTILINE), name


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


@pytest.fixture
def parts(tmp_path):
    """A chitchat of forty conversations, a WordNet of one line a file."""
    words = [f"w{chr(97 + one % 26)}{chr(97 + one // 26)}" for one in range(40)]
    raw = {
        word: {"messages": [
            [{"text": f"I like number words like {word}!"}, {"text": "ok"}],
            [{"text": "you can mail me at a@b.com"}],
            [{"text": "This comes too late."}],
        ]}
        for word in words
    }  # fmt: skip
    path = tmp_path / texts.CHITCHAT_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(raw))
    (tmp_path / texts.WORDNET_FOLDER).mkdir()
    for kind in ("adj", "adv", "noun", "verb"):
        line = f'00001740 00 s | a word; "the {kind} came first"; "what a shitty {kind}"'
        (tmp_path / texts.WORDNET_FOLDER / f"data.{kind}").write_text(line)
    texts._chitchat.cache_clear()
    return tmp_path


def test_held_out_chats_share_no_sentence_with_the_others(parts):
    train, held_out = (set(texts.chat_sentences(parts, held_out=one)) for one in (False, True))
    assert train and held_out and not train & held_out
    assert len(train) + len(held_out) == 40


def test_private_data_ends_a_conversation(parts):
    for conversation in texts.conversations(parts):
        assert len(conversation.turns) == 1
    assert not texts.is_clean("call me on 555-1234") and texts.is_clean("I have two dogs.")


def test_wordnet_gives_its_clean_examples(parts):
    assert sorted(texts.wordnet_sentences(parts)) == [
        f"the {kind} came first" for kind in ("adj", "adv", "noun", "verb")
    ]


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
