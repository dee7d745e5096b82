"""Claims about joint CTC decoding: which ids it weighs and where, and what silence is answered."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from osum_echat.generation.ctc_prefix import CtcPrefixScorer, spoken_ids
from osum_echat.inference import assistant as answering
from osum_echat.inference import request
from osum_echat.inference.assistant import EChat
from osum_echat.inference.reply import Timer
from osum_echat.inference.request import Options
from osum_echat.paths import TINY
from osum_echat.records import Labels
from osum_echat.thinking import without_labels

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
    assert words[with_space] and words[without] and first[with_space] == without
    for mark in ("<CHILD>", "<|im_end|>", ",", "<think>"):
        assert not words[assistant.vocab.encode(mark)[0]]


@pytest.mark.parametrize(("options", "begins"), [
    ({"task": "asr"}, True), ({"task": "understand"}, True), ({"task": "<AGE> <GENDER>"}, False),
    ({"task": "s2t_think", "thinking": "label"}, True), ({"task": "s2t"}, None),
    ({"task": "s2t_think", "thinking": "natural"}, None),
])  # fmt: skip
def test_what_writes_words_or_labels_reads_along_and_nothing_else(assistant, options, begins):
    rules = added(assistant, 0.7, **options)
    assert [rule.begins for rule in rules] == ([] if begins is None else [begins])
    for rule in rules:
        shares = rule.log_probs.exp().sum(-1)
        assert rule.weight == 0.7 and rule.log_probs.shape[1] == assistant.vocab.text_rows + 1
        assert torch.allclose(shares, torch.ones(len(shares)), atol=1e-4)


def sound(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 16_000, subtype="FLOAT", format="WAV")
    return file.getvalue()


TIMES = np.arange(32_000) / 16_000
NOISE = np.random.default_rng(0).normal(0, 1, 32_000)
FAINT = {"zeros": np.zeros(32_000), "offset": np.full(32_000, 0.3), "dither": 3e-5 * NOISE}
LOUD = {"noise": 0.01 * NOISE, "hum": 0.1 * np.sin(2 * np.pi * 50 * TIMES),
        "clicks": np.where(np.arange(32_000) % 8_000 == 0, 0.8, 0.0)}  # fmt: skip


@pytest.mark.parametrize("samples", (FAINT | LOUD).values(), ids=FAINT | LOUD)
@pytest.mark.parametrize("task", ["asr", "understand", "s2t", "s2t_think"])
def test_a_clip_without_speech_is_no_words(assistant, samples, task):
    reply = assistant.reply(sound(samples), task=task)
    assert reply.heard == ""
    if task == "understand" and any(samples is faint for faint in FAINT.values()):
        assert reply.labels == Labels() == assistant.reply(sound(samples), task="<AGE>").labels
    if "s2t" in task:
        assert reply.text == request.NOTHING_HEARD["english"]
    else:
        assert without_labels(reply.text) == ""


def test_faint_speech_is_still_heard(assistant):
    samples, rate = soundfile.read(SAMPLE)
    faint = np.round(samples * 0.001 * 32_768) / 32_768     # 16 bits, 60 dB down
    assert rate == 16_000 and len(assistant.reply(sound(faint), task="asr").heard.split()) >= 3


def test_silence_is_answered_aloud_and_beside_others(model_directory, question_wav):
    echat = EChat.load(model_directory, device="cpu")
    silent = sound(FAINT["zeros"])
    alone = echat.reply(silent, task="s2s_think", seed=2)
    assert alone.text == request.NOTHING_HEARD["english"] and alone.wave is not None
    first, other, asked = echat.reply_many([silent, question_wav, silent], task="s2s_think", seed=2)
    assert first.speech_tokens == asked.speech_tokens == alone.speech_tokens
    assert other.text == echat.reply(question_wav, task="s2s_think", seed=2).text != alone.text
    *_, done = echat.stream(silent, task="s2s_think", seed=2)
    assert done.reply.speech_tokens == alone.speech_tokens and done.reply.heard == ""
