"""What a model that spells by CTC hears: words weighed by the LLM, and labels."""

from dataclasses import replace

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.generation.ctc_beam import Weights
from osum_echat.inference.recognizer import is_without_voice, labels, recognize, words
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import EChatModel
from tests.tiny_network import SETTINGS, VOCAB, network

NAMES = {"CHILD": 3, "ADULT": 4, "LAUGH": 5, "NOISE": 6}


def spelled(*ids: int, classes: int) -> torch.Tensor:
    """Steps that are nearly sure of these ids, one after the other, a blank after each."""
    scores = torch.full((2 * len(ids), classes), -12.0)
    for place, number in enumerate(ids):
        scores[2 * place, number] = scores[2 * place + 1, -1] = 0.0
    return scores.log_softmax(-1)


def test_a_label_is_the_surest_of_its_kind_and_left_out_where_none_is_sure():
    scores = spelled(4, 0, classes=8)
    assert labels(scores, NAMES) == {"age": "ADULT"}
    assert not is_without_voice(scores, NAMES)
    assert is_without_voice(spelled(6, classes=8), NAMES)


def test_the_llm_decides_between_texts_that_the_steps_like_alike():
    model = network()
    one, other = VOCAB.encode("a")[0], VOCAB.encode("b")[0]
    scores = torch.full((1, model.text_rows + 1), -20.0)
    scores[0, one] = scores[0, other] = 0.0
    scores = scores.log_softmax(-1)
    heard = [words(model, VOCAB, scores, Weights(llm=sign, word=0.0)) for sign in (5.0, -5.0)]
    assert sorted(heard) == ["a", "b"]


def test_silence_has_no_words():
    assert words(network(), VOCAB, spelled(*[], classes=9).new_zeros(0, 9), Weights()) == ""


def test_a_model_without_classes_of_its_own_is_refused():
    with pytest.raises(ConfigError, match=r"missing in model\.yaml"):
        recognize(network(), VOCAB, torch.zeros(40, SETTINGS.encoder.mels))


def test_a_clip_gives_words_and_labels():
    torch.manual_seed(0)
    settings = replace(SETTINGS, ctc=CtcSettings(pieces=20, labels=("CHILD", "ADULT")))
    found = recognize(EChatModel(settings).eval(), VOCAB, torch.zeros(80, settings.encoder.mels))
    assert found.labels.keys() <= {"age"} and isinstance(found.words, str)
