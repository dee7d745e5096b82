"""Claims about reading along: which ids it weighs, and that answers are given it where it helps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osum_echat.generation.ctc_prefix import CtcPrefixScorer, label_ids, spoken_ids
from osum_echat.inference import assistant as answering
from osum_echat.inference import request
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import Timer
from osum_echat.inference.request import Options
from osum_echat.paths import TINY

SAMPLE = next((TINY / "samples").glob("*.wav"))


@pytest.fixture(scope="module")
def assistant() -> EChat:
    return EChat.load(TINY, device="cpu", speaks=False)


def added(assistant: EChat, weight: float, source: str | Path = SAMPLE, **options) -> list:
    """The rules that read along, as an answer gets them."""
    settings = replace(assistant.model.generation, ctc_weight=weight)
    model = replace(assistant.model, generation=settings)
    asked = request.make_request(model, source, Options(speak=False, **options))
    state = request.prepare(model, asked, 0, Timer(0.0))
    (state,), _ = answering._embed(model, [state])
    return [rule for rule in state.answer.text.rules if isinstance(rule, CtcPrefixScorer)]


def test_words_are_ids_of_letters_and_digits(assistant):
    words, first = spoken_ids(assistant.vocab)
    (with_space,) = {assistant.vocab.encode(" i")[-1]}
    (without,) = assistant.vocab.encode("i")
    assert words[with_space] and words[without]
    assert first[with_space] == without
    for mark in ("<CHILD>", "<|im_end|>", ",", "<think>"):
        assert not words[assistant.vocab.encode(mark)[0]]


def test_labels_are_the_marks_of_voices(assistant):
    labels = label_ids(assistant.vocab)
    assert labels[assistant.vocab.encode("<CHILD>")[0]]
    assert not labels[assistant.vocab.encode("<CALM>")[0]]


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({"task": "asr"}, True),
        ({"task": "understand"}, True),
        ({"task": "<AGE> <GENDER>"}, False),
        ({"task": "s2t_think", "thinking": "label"}, True),
    ],
)
def test_what_writes_words_or_labels_reads_along(assistant, options, begins):
    (rule,) = added(assistant, 0.7, **options)
    assert rule.begins == begins
    assert rule.weight == 0.7
    assert rule.log_probs.shape[1] == assistant.vocab.text_rows + 1
    assert torch.allclose(rule.log_probs.exp().sum(-1), torch.ones(len(rule.log_probs)), atol=1e-4)


@pytest.mark.parametrize("options", [{"task": "s2t"}, {"task": "s2t_think", "thinking": "natural"}])
def test_other_answers_are_the_llms_alone(assistant, options):
    assert added(assistant, 0.7, **options) == []


def test_without_a_weight_nothing_reads_along(assistant):
    assert added(assistant, 0.0, task="asr") == []
