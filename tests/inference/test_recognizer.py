"""What a model hears by CTC: words weighed by the LLM, labels, and rules of joint decoding."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from osum_echat.errors import CheckpointError, ConfigError
from osum_echat.generation import ctc_beam
from osum_echat.generation.ctc_prefix import CtcPrefixScorer
from osum_echat.inference import assistant as answering
from osum_echat.inference import recognizer, request
from osum_echat.inference.assistant import EChat
from osum_echat.inference.recognizer import (
    Recognition,
    Recognizer,
    RecognizerSettings,
    labels,
    surest_of_ctc,
)
from osum_echat.inference.reply import Timer
from osum_echat.inference.request import Options
from osum_echat.models import whisper_decoder
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import EChatModel
from osum_echat.models.voice_labels import VoiceLabels, statistics
from osum_echat.paths import TINY
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.thinking import as_heard, without_labels
from osum_echat.weights import write_safetensors_file
from tests.tiny_network import SETTINGS, VOCAB, network

SAMPLE = next((TINY / "samples").glob("*.wav"))
NAMES = {"CHILD": 3, "ADULT": 4, "LAUGH": 5, "NOISE": 6}


def spelled(*ids: int, classes: int) -> torch.Tensor:
    """Steps that are nearly sure of these ids, one after the other, a blank after each."""
    scores = torch.full((2 * len(ids), classes), -12.0)
    for place, number in enumerate(ids):
        scores[2 * place, number] = scores[2 * place + 1, -1] = 0.0
    return scores.log_softmax(-1)


def test_a_label_is_the_surest_of_its_kind_and_left_out_where_none_is_sure():
    scores = spelled(4, 0, classes=8)
    assert labels(surest_of_ctc(scores, NAMES)) == {"age": "ADULT"}
    assert not recognizer.is_without_voice(scores, NAMES)
    assert recognizer.is_without_voice(spelled(6, classes=8), NAMES)
    assert not recognizer.is_without_voice(spelled(6, 0, classes=8), NAMES)    # noise, then words


@pytest.fixture
def told(tmp_path):
    """Voice labels of the tiny network that are sure of HAPPY and of no sound, and the tensors."""
    units, count = 3, 8 * SETTINGS.encoder.mels + 2 * SETTINGS.encoder.width
    rows = {"emotion.SAD": 0.0, "emotion.HAPPY": 5.0, "event.OTHER": 5.0, "event.SIGH": 0.0}
    found = {"center": torch.zeros(count), "scale": torch.ones(count),
             "hidden.weight": torch.zeros(units, count), "hidden.bias": torch.zeros(units),
             **{name: torch.tensor([0.0] * units + [one]) for name, one in rows.items()}}

    def load(**changes) -> VoiceLabels:
        write_safetensors_file(tmp_path / "labels.safetensors", found | changes)
        return VoiceLabels.load(tmp_path / "labels.safetensors")

    return load


@pytest.mark.parametrize("frames", [1, 40, 3000])
def test_voice_labels_take_the_place_of_the_ctcs(told, frames):
    model, mel = network(), torch.rand(frames, SETTINGS.encoder.mels)
    ((kind, (name, score)),) = told().surest(model.encoder, mel).items()
    assert (kind, name) == ("emotion", "HAPPY") and score == pytest.approx(-0.0067, abs=1e-4)
    sigh = told(**{"event.SIGH": torch.tensor([0.0, 0, 0, 9])})
    assert sigh.surest(model.encoder, mel)["event"][0] == "SIGH"
    known, silence = statistics(model.encoder, mel), torch.full((1600, mel.shape[1]), -1.0)
    assert torch.equal(known, statistics(model.encoder, mel[:1500]))
    padded = [torch.cat((silence[:count], mel, silence[:count])) for count in (5, 1600)]
    assert torch.equal(*(statistics(model.encoder, one) for one in padded))


@pytest.mark.parametrize(("changes", "message"), [
    ({"scale": torch.ones(7)}, "do not fit"),
    ({"hidden.bias": torch.ones(4)}, "do not fit"),
    ({"emotion.SAD": torch.ones(9)}, r"emotion.SAD \(9,\) is no label's row of 4 numbers"),
    ({"emotion.COLD": torch.ones(4)}, r"emotion.COLD \(4,\) is no label's row"),
])  # fmt: skip
def test_broken_voice_labels_are_refused(told, changes, message):
    with pytest.raises(CheckpointError, match=message):
        told(**changes)


def test_the_llm_decides_between_texts_that_the_steps_like_alike():
    model = network()
    one, other = VOCAB.encode("a")[0], VOCAB.encode("b")[0]
    scores = torch.full((1, model.text_rows + 1), -20.0)
    scores[0, one] = scores[0, other] = 0.0
    scores = scores.log_softmax(-1)
    heard = [Recognizer(model, VOCAB, RecognizerSettings(llm=sign, word=0.0)).words(scores)
             for sign in (5.0, -5.0)]  # fmt: skip
    assert sorted(heard) == ["a", "b"]


def test_a_clip_gives_words_and_labels_by_classes_of_the_models_own(told):
    with pytest.raises(ConfigError, match=r"missing in model\.yaml"):
        Recognizer(network(), VOCAB).recognize(torch.zeros(40, SETTINGS.encoder.mels))
    with pytest.raises(ConfigError, match="choose one of ear, whisper, both"):
        RecognizerSettings(kind="nose")
    torch.manual_seed(0)
    settings = replace(SETTINGS, ctc=CtcSettings(pieces=20, labels=("CHILD", "ADULT")))
    model, mel = EChatModel(settings).eval(), torch.zeros(80, settings.encoder.mels)
    found = Recognizer(model, VOCAB).recognize(mel)
    assert found.labels.keys() <= {"age"} and isinstance(found.words, str)
    told = told(**{"event.SIGH": torch.tensor([0.0, 0, 0, 9])})
    found = Recognizer(model, VOCAB, voice_labels=told).recognize(mel)
    assert found.labels["event"] == "SIGH" and "age" not in found.labels


def test_a_long_clip_is_weighed_in_parts_that_hold_each_step_once(monkeypatch):
    model = EChatModel(replace(SETTINGS, ctc=CtcSettings(pieces=20, labels=("CHILD",)))).eval()
    mel, seen = torch.randn(1003, SETTINGS.encoder.mels), []
    made = Recognizer(model, VOCAB, RecognizerSettings(words=-1e9))
    whole = made.heard(mel)[0]
    monkeypatch.setattr(whisper_decoder, "LONGEST_FRAMES", 400)
    monkeypatch.setattr(
        recognizer, "is_without_voice", lambda part, *_: seen.append(part) or len(seen) == 2
    )
    monkeypatch.setattr(Recognizer, "words", lambda *_: f"part {len(seen)}")
    found = made.recognize(mel)
    assert torch.equal(torch.cat(seen), whole) and found.words == "part 1 part 3"
    assert all(300 // 8 <= len(part) <= 400 // 8 for part in seen[:2])


@pytest.fixture
def small(monkeypatch):
    """The tiny model as one whose CTC spells: it hears what the test puts into `heard`."""
    told = {"heard": Recognition("hi you", {"age": "CHILD", "gender": "FEMALE", "emotion": "SAD"})}
    monkeypatch.setattr(Recognizer, "recognize", lambda *_: told["heard"])
    echat = EChat.load(TINY, device="cpu", speaks=False)
    classes = CtcSettings(pieces=echat.vocab.text_rows, labels=("CHILD",))
    echat.network.settings = replace(echat.network.settings, ctc=classes)
    return echat, told


def test_the_clip_is_read_as_labels_and_words(small):
    echat, _ = small
    made = request.make_request(echat.model, SAMPLE, request.Options("s2t_think", thinking="label"))
    state = request.prepare(echat.model, made, 0, Timer(0.0))
    assert not state.row.clips and " child female sad hi you" in echat.vocab.decode(state.row.ids)
    assert echat.vocab.decode(state.row.ids).endswith(
        "The user said: hi you, age: <CHILD>, gender: <FEMALE>, emotion: <SAD>, "
        "sound event: <OTHER>, reply emotion:"
    )


def test_earlier_turns_are_read_as_the_words_that_were_heard(small):
    echat, _ = small
    earlier = Turn(SAMPLE, "my dog is ill", "I am so sorry.", (1, 2, 3))
    asked = Utterance("", "<S2TCHAT>", Turn(SAMPLE), history=(earlier,))
    model = replace(echat.model, talker=echat.model)
    made = request.make_request(model, asked, request.Options("s2t"))
    state = request.prepare(model, made, 0, Timer(0.0))
    told = echat.vocab.decode(state.row.ids)
    assert "my dog is ill" in told and told.count("child female sad") == 1
    assert not {echat.vocab.joint(code) for code in earlier.reply_speech} & {*state.row.ids}
    start = request.opening_row(model, (earlier,), made.task)
    assert state.row.ids[: len(start.ids)] == start.ids


def test_words_and_labels_are_answered_as_they_were_heard_and_nothing_as_such(small):
    echat, told = small
    reply = echat.reply(SAMPLE, task="understand", labels=("age", "gender"))
    assert (reply.heard, reply.labels.age, reply.labels.gender) == ("hi you", "CHILD", "FEMALE")
    assert echat.reply(SAMPLE, task="s2t", greedy=True).heard == "hi you"
    told["heard"] = Recognition("", {})
    reply = echat.reply(SAMPLE, task="s2t_think", thinking="natural")
    assert reply.heard == "" and reply.text


def test_a_text_that_was_read_joins_and_wins_by_what_that_counts(small):
    model, vocab = small[0].network, small[0].vocab
    scores = spelled(*vocab.encode(" who are you"), classes=model.text_rows + 1)
    told = [
        Recognizer(model, vocab, RecognizerSettings(kind="both", whisper=worth)).words(
            scores, ["who is he"])
        for worth in (0.0, 1000.0)
    ]
    assert told == ["who are you", "who is he"]
    read = recognizer.Candidate("press one or two", ctc=-90.0, is_read=True, each=(-8.0,))
    assert read.worth(RecognizerSettings(kind="both", llm=0.5, word=1.0, whisper=12.0)) == -42.0
    assert as_heard(" It\u2019s five - O'clock, Mr. X!") == "it's five o'clock mr x"


# Joint CTC decoding: which ids it weighs and where, and what silence is answered

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


@pytest.mark.parametrize("weight", [0.0, 0.5, -0.5])
def test_the_llm_is_not_asked_about_texts_that_cannot_win(monkeypatch, weight):
    torch.manual_seed(0)
    model, asked, real = network(), [], ctc_beam.llm_scores
    settings = RecognizerSettings(llm=weight, word=-1.0)
    made = Recognizer(model, VOCAB, settings)
    monkeypatch.setattr(
        ctc_beam, "llm_scores", lambda *given: [*map(asked.append, given[2])] and real(*given)
    )
    for _ in range(3):
        scores = (3 * torch.randn(6, model.text_rows + 1)).log_softmax(-1)
        every = made.candidates(scores)
        asked.clear()
        best = max(every, key=lambda one: one.worth(settings))
        assert made.words(scores) == best.text
        assert len(asked) == 1 if not weight else len(asked) <= len(every)
