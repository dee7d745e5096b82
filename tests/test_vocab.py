"""Claims about the id space: marks found by name, text and speech never overlap."""

import pytest

from osum_echat.errors import CheckpointError, DataError
from osum_echat.vocab import Vocab
from tests.letters import Letters, letter_vocab


def test_text_and_speech_share_one_id_space():
    vocab = letter_vocab(speech_codes=8)
    assert (vocab.speech_edge, vocab.audio_begin, vocab.audio_end) == (8, 9, 10)
    assert (vocab.speech_rows, vocab.speech_head_rows) == (11, 9)
    for number in range(vocab.speech_rows):
        joint = vocab.joint(number)
        assert vocab.is_speech(joint) and vocab.speech(joint) == number
    assert not vocab.is_speech(vocab.text_rows - 1)
    for number in (-1, 11):
        with pytest.raises(DataError, match="need 0 to 10"):
            vocab.joint(number)


def test_marks_are_found_by_name_and_left_out_of_the_text():
    vocab = letter_vocab()
    assert vocab.decode([*vocab.encode("<|im_start|>hi"), vocab.text_end, vocab.joint(3)]) == "hi"
    assert vocab.encode("a&&b")[1] == vocab.unknown_label


def test_a_tokenizer_without_the_end_mark_is_refused():
    with pytest.raises(CheckpointError, match=r"<\|im_end\|> is 10 pieces, need one"):
        Vocab(Letters(marks=()), 300)


def test_the_choices_after_a_cue_are_the_first_ids_that_differ():
    vocab = letter_vocab()
    cue, choices = vocab.choices_after("age: <", ("CHILD>", "ADULT>", "OLD>"))
    assert cue == vocab.encode("age: <")
    assert choices == tuple(sorted(vocab.encode("CAO")))


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        Vocab.from_directory(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        Vocab.from_directory(tmp_path)


def test_a_hugging_face_tokenizer_drops_chat_marks_but_keeps_labels(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("hi", "there", "[UNK]"))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>", "<think>", "&&"])
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(tmp_path)
    vocab = Vocab.from_directory(tmp_path, text_rows=16)
    assert (vocab.text_end, vocab.unknown_label, vocab.text_rows) == (4, 6, 16)
    assert vocab.decode([3, 5, 0, 1, 4, 12, 20]).split() == ["<think>", "hi", "there"]
    assert Vocab.from_directory(tmp_path).text_rows == 7
    with pytest.raises(CheckpointError, match="has 7 ids, the model's text table 5 rows"):
        Vocab.from_directory(tmp_path, text_rows=5)
