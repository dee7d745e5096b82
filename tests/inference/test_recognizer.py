"""What a model that spells by CTC hears: words weighed by the LLM, and labels."""

from dataclasses import replace

import pytest
import torch

from osum_echat.errors import ConfigError
from osum_echat.generation import ctc_beam
from osum_echat.inference import recognizer, request
from osum_echat.inference.assistant import EChat
from osum_echat.inference.recognizer import Recognition, RecognizerSettings, labels, words
from osum_echat.inference.reply import Timer
from osum_echat.models import whisper_decoder
from osum_echat.models.ctc import CtcSettings
from osum_echat.models.echat import EChatModel
from osum_echat.paths import TINY
from osum_echat.records import Turn, Utterance
from osum_echat.tasks import task_for
from osum_echat.thinking import VALUES, as_heard
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
    assert labels(scores, NAMES) == {"age": "ADULT"}
    assert not recognizer.is_without_voice(scores, NAMES)
    assert recognizer.is_without_voice(spelled(6, classes=8), NAMES)


def test_a_label_without_settings_of_its_own_is_told_and_an_unknown_one_is_marked(monkeypatch):
    assert Recognition("hello", {"age": "OLD"}).answer(task_for("<TRANSCRIBE> <STYLE> <AGE>")) == (
        "hello<&&><OLD>"
    )
    monkeypatch.setitem(VALUES, "style", frozenset({"SOFT"}))
    found = labels(spelled(0, classes=8), NAMES | {"SOFT": 3})
    assert found == {"style": "SOFT"}
    assert Recognition("hello", found).answer(task_for("<STYLE>")) == "<SOFT>"


def test_the_llm_decides_between_texts_that_the_steps_like_alike():
    model = network()
    one, other = VOCAB.encode("a")[0], VOCAB.encode("b")[0]
    scores = torch.full((1, model.text_rows + 1), -20.0)
    scores[0, one] = scores[0, other] = 0.0
    scores = scores.log_softmax(-1)
    heard = [words(model, VOCAB, scores, RecognizerSettings(llm=sign, word=0.0))
             for sign in (5.0, -5.0)]  # fmt: skip
    assert sorted(heard) == ["a", "b"]


@pytest.mark.parametrize("weight", [0.0, 0.5, -0.5])
def test_the_llm_is_not_asked_about_texts_that_cannot_win(monkeypatch, weight):
    torch.manual_seed(0)
    model, asked, real = network(), [], ctc_beam.llm_scores
    settings = RecognizerSettings(llm=weight, word=-1.0)
    monkeypatch.setattr(
        ctc_beam, "llm_scores", lambda *given: [*map(asked.append, given[2])] and real(*given)
    )
    for _ in range(3):
        scores = (3 * torch.randn(6, model.text_rows + 1)).log_softmax(-1)
        every = recognizer.candidates(model, VOCAB, scores)
        asked.clear()
        best = max(every, key=lambda one: one.worth(settings))
        assert words(model, VOCAB, scores, settings) == best.text
        assert len(asked) == 1 if not weight else len(asked) <= len(every)


def test_a_clip_gives_words_and_labels_by_classes_of_the_models_own():
    with pytest.raises(ConfigError, match=r"missing in model\.yaml"):
        recognizer.recognize(network(), VOCAB, torch.zeros(40, SETTINGS.encoder.mels))
    with pytest.raises(ConfigError, match="choose one of ear, whisper, both"):
        RecognizerSettings(kind="nose")
    torch.manual_seed(0)
    settings = replace(SETTINGS, ctc=CtcSettings(pieces=20, labels=("CHILD", "ADULT")))
    model, mel = EChatModel(settings).eval(), torch.zeros(80, settings.encoder.mels)
    found = recognizer.recognize(model, VOCAB, mel)
    assert found.labels.keys() <= {"age"} and isinstance(found.words, str)


def test_a_long_clip_is_weighed_in_parts_that_hold_each_step_once(monkeypatch):
    model = EChatModel(replace(SETTINGS, ctc=CtcSettings(pieces=20, labels=("CHILD",)))).eval()
    mel, seen = torch.randn(1003, SETTINGS.encoder.mels), []
    whole = recognizer.heard(model, mel)[0]
    monkeypatch.setattr(whisper_decoder, "LONGEST_FRAMES", 400)
    monkeypatch.setattr(
        recognizer, "is_without_voice", lambda part, *_: seen.append(part) or len(seen) == 2
    )
    monkeypatch.setattr(recognizer, "words", lambda *_: f"part {len(seen)}")
    found = recognizer.recognize(model, VOCAB, mel, RecognizerSettings(words=-1e9))
    assert torch.equal(torch.cat(seen), whole) and found.words == "part 1 part 3"
    assert all(300 // 8 <= len(part) <= 400 // 8 for part in seen[:2])


@pytest.fixture
def small(monkeypatch):
    """The tiny model as one whose CTC spells: it hears what the test puts into `heard`."""
    told = {"heard": Recognition("hi you", {"age": "CHILD", "gender": "FEMALE", "emotion": "SAD"})}
    monkeypatch.setattr(request, "recognize", lambda *_, **__: told["heard"])
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
        words(model, vocab, scores, RecognizerSettings(kind="both", whisper=worth), ["who is he"])
        for worth in (0.0, 1000.0)
    ]
    assert told == ["who are you", "who is he"]
    read = recognizer.Candidate("press one or two", ctc=-90.0, is_read=True, each=(-8.0,))
    assert read.worth(RecognizerSettings(kind="both", llm=0.5, word=1.0, whisper=12.0)) == -42.0
    assert as_heard(" It\u2019s five - O'clock, Mr. X!") == "it's five o'clock mr x"
