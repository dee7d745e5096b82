"""The ear's recipe: what it writes with, what it hears, and what it is measured by."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from common_utils.small_model import features, people, pieces, speak, waves
from common_utils.small_model.export_ear import parts_of
from common_utils.small_model.measure_ear import Heard, clips, figures
from osum_echat.errors import OsumError
from osum_echat.files import write_jsonl
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel
from osum_echat.models.encoder_cache import EncoderCache
from osum_echat.records import Labels, Turn, Utterance
from tests.letters import letter_vocab
from tests.tiny_network import SETTINGS, network

AROUND = waves.Surroundings(
    (np.random.default_rng(0).standard_normal(8000).astype(np.float32),),
    (np.exp(-np.arange(800) / 90).astype(np.float32),),
)


def tone(seconds: float = 0.6) -> waves.Wave:
    time_s = np.arange(int(seconds * waves.RATE_HZ)) / waves.RATE_HZ
    return (0.1 * np.sin(2 * np.pi * 220 * time_s)).astype(np.float32)


def test_words_are_written_as_they_are_heard():
    told = pieces.heard_words("Well-known: it's Tom's, \"isn’t\" it?")
    assert told == " well known it's tom's isn't it"
    assert pieces.heard_words("I have 2 dogs") is None
    assert pieces.heard_words("...") == ""


def test_the_cut_tokenizer_spells_each_token_of_the_llm_by_its_own_first_pieces(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [f" {one}{other}ing" for one in "walk talk sing bring".split() for other in ("", "er")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole.train_from_iterator(words * 5, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=alphabet,
        special_tokens=["<|im_end|>"],
    ))  # fmt: skip
    llm = tmp_path / "llm"
    llm.mkdir()
    whole.save(str(llm / "tokenizer.json"))
    (llm / "tokenizer_config.json").write_text("{}")
    size = pieces.cut_tokenizer(llm, tmp_path / "cut", merges=10)
    cut = Tokenizer.from_file(str(tmp_path / "cut/tokenizer.json"))
    assert size == cut.get_vocab_size() == 1 + 256 + 10 + len(pieces.LABELS)
    said = " walking talkering"
    tokens = [token.replace("Ġ", " ") for token in whole.encode(said).tokens]
    spelled = [number for token in tokens for number in cut.encode(token).ids]
    assert cut.encode(said).ids == spelled
    assert all(cut.id_to_token(one) == whole.id_to_token(one) for one in spelled)
    assert cut.encode("<LAUGH>").ids == [size - len(pieces.LABELS) + pieces.LABELS.index("LAUGH")]


def test_another_room_keeps_the_length_and_repeats_by_its_seed():
    made = [waves.elsewhere(tone(), AROUND, np.random.default_rng(seed), speed=False)
            for seed in (1, 1, 2, 3, 4, 5)]  # fmt: skip
    assert all(len(one) == len(tone()) and np.abs(one).max() <= 1 for one in made)
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_a_list_tells_words_and_known_labels_only():
    made = waves.record("k", "k.flac", " hi", {"gender": "MALE", "age": None, "event": "LAUGH"})
    utterance = Utterance.from_json(json.loads(json.dumps(made)), "a list", waves.Path())
    assert utterance.user.text == " hi"
    assert utterance.labels == Labels(gender="MALE", event="LAUGH")
    assert waves.record("k", "k.flac", "", {"event": "SIGH"})["txt"] == "<SIGH>"


def test_speakers_are_kept_out_whole():
    lines = [{"speaker": f"eg_{number % 40:06d}", "name": str(number)} for number in range(400)]
    kept = {line["speaker"] for line in lines if people.is_dev(line)}
    assert 0 < len(kept) < 12
    assert not kept & {line["speaker"] for line in lines if not people.is_dev(line)}


def test_only_sentences_of_known_words_are_spoken():
    known = frozenset("the dog runs".split())
    assert speak.can_be_read("The dog's runs!", known)
    assert not speak.can_be_read("The dgo runs.", known)
    drawn = speak.sentences([["the dog runs"], ["the dog"], ["runs"]], np.random.default_rng(0))
    assert all(next(drawn)[-1] == "." for _ in range(5))


def test_a_cache_made_beforehand_is_what_training_looks_up(tmp_path):
    checkpoint.save(tmp_path / "model", network())
    lines = []
    for number, seconds in enumerate((0.5, 0.9, 0.7)):
        lines.append(waves.kept(tmp_path / "lists", "x", str(number), tone(seconds), " hi", {}))
    path = tmp_path / "lists/train.list"
    write_jsonl(path, lines)
    features.main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "made"), str(path)])
    cache = EncoderCache(network().encoder, 1 << 20)
    assert cache.load(tmp_path / "made")
    kept = len(cache._kept)
    for _, mel in clips(path, SETTINGS.encoder.mels):
        cache(mel[None], torch.tensor([len(mel)]))
    assert len(cache._kept) == kept == 3


def test_the_ear_is_measured_by_words_and_labels():
    vocab = letter_vocab()
    scores = torch.full((4, vocab.text_rows + 1), -9.0)
    for step, letter in enumerate("hi"):
        scores[2 * step, vocab.encode(letter)[0]] = 0.0
        scores[2 * step + 1, -1] = 0.0
    told = Utterance("k", "asr", Turn(text="hi", reply_text="hi"))
    other = replace(told, user=Turn(text="ho", reply_text="ho"))
    made = figures([Heard(told, scores), Heard(other, scores)], vocab)
    assert made["wer"] == 50.0 and made["n"] == 2 and made["substitutions"] == 1


def test_what_is_exported_gives_the_same_classes_in_another_model():
    trained = network()
    found, classes = parts_of(trained)
    whole = EChatModel(replace(SETTINGS, ctc=classes)).eval()
    whole.llm.load_state_dict(trained.llm.state_dict())
    whole.ctc_labels.weight.data = found["ctc_labels.weight"].float()
    whole.speech_embedding.weight.data[SETTINGS.speech_codes :] = found["speech_marks"].float()
    steps = torch.randn(1, 5, whole.llm.config.hidden_size)
    assert torch.allclose(whole.ctc_log_probs(steps), trained.ctc_log_probs(steps), atol=2e-2)
    assert {name for name in found if name.startswith("adapter.")}


@pytest.mark.parametrize("name", ["hibari", "espeak"])
def test_engines_without_their_parts_are_refused(name, tmp_path):
    with pytest.raises(OsumError, match="missing"):
        speak.ENGINES[name](tmp_path)


def test_pieces_of_made_speech_are_joined_and_heard_once(tmp_path):
    for number in (0, 1):
        write_jsonl(tmp_path / f"espeak_00{number}.list", [{"key": str(number)}])
    for name in ("bursts", "bursts_dev"):
        write_jsonl(tmp_path / f"{name}.list", [])
    speak.join(tmp_path, "espeak")
    assert (tmp_path / "espeak.list").read_text() == '{"key": "0"}\n{"key": "1"}\n'
    found = [one.stem for one in sorted(tmp_path.glob("*.list")) if not features.is_joined(one)]
    assert found == ["bursts", "bursts_dev", "espeak_000", "espeak_001"]
