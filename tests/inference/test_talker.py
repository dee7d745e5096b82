"""Claims about the talker: what speaks, from when on, and never more than the text has."""

import shutil
from pathlib import Path

import pytest
import torch

from osum_echat import EChat
from osum_echat.errors import CheckpointError
from osum_echat.generation import decoder
from osum_echat.generation.decoder import Token
from osum_echat.inference import assistant, talker
from osum_echat.inference.reply import AudioPiece, Done, TextPiece
from osum_echat.inference.talker import ClauseSplitter, Speech, Talker
from osum_echat.token2wav.model import Token2Wav
from osum_echat.token2wav.voice import VoicePrompt
from tests.tiny_model import CODES, changed_model

SOUND = Path("pretrained/tiny/samples/question.wav")
TEXT = "Hello there, my friend. How are you today?"


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights rarely go on by themselves."""
    monkeypatch.setattr(talker, "MOST_CODES", 2)


@pytest.fixture(scope="module")
def echat(model_directory: Path) -> EChat:
    return EChat.load(model_directory, device="cpu", talker=model_directory)


def test_a_growing_text_is_cut_into_clauses_as_soon_as_they_are_whole():
    splitter = ClauseSplitter()
    letters = [splitter.push(letter) for letter in "Yes. Well, if you like, 3.5 of them. Bye"]
    assert [found for found in letters if found] == [["Yes."], ["Well, if you like,"],
                                                    ["3.5 of them."]]  # fmt: skip
    assert splitter.push("", is_last=True) == ["Bye"] and splitter.push("", is_last=True) == []
    assert list(map(len, splitter.push("word " * 70))) == [159, 159]


@pytest.mark.parametrize("before", [152, 154, 155, 156, 157, 158, 159, 160, 250])
def test_a_text_that_comes_whole_is_cut_as_one_that_grows(before: int):
    text = ("word " * 60)[:before] + 'x."  Then, well, it goes on. ' + "and on " * 40
    whole, grown = ClauseSplitter(), ClauseSplitter()
    letters = [clause for letter in text for clause in grown.push(letter)]
    assert whole.push(text, is_last=True) == letters + grown.push("", is_last=True)


def test_given_words_are_spoken_by_the_talker_alone(echat, monkeypatch):
    monkeypatch.setattr(decoder, "decode", None)
    reply = echat.reply(TEXT, task="tts")
    assert reply.text == TEXT and reply.stopped_by == "end"
    assert 0 < len(reply.speech_tokens) <= 2 * (len(echat.vocab.encode(TEXT)) + 2)
    assert reply.wave is not None and torch.isfinite(reply.wave).all()
    events = list(echat.stream(TEXT, task="tts"))
    assert isinstance(events[0], TextPiece) and isinstance(events[1], AudioPiece)
    assert isinstance(events[-1], Done) and events[-1].reply.speech_tokens == reply.speech_tokens
    (other,) = echat.reply_many([TEXT], task="tts")
    assert other.speech_tokens == reply.speech_tokens
    assert torch.allclose(other.wave, reply.wave, atol=1e-4)


def test_speech_begins_with_the_first_clause_while_words_are_still_written(echat, monkeypatch):
    written = echat.vocab.encode(TEXT)
    asked: list[int] = []

    def decode(model, states, prompts, interrupt=None):
        for number in written:
            asked.append(number)
            yield 0, Token(number, is_speech=False)
        states[0].answer.stopped_by = "end"

    monkeypatch.setattr(assistant, "_decode", decode)
    monkeypatch.setattr(assistant, "_embed", lambda model, states: (states, [None]))
    codes_at = []
    spoken = Speech.push

    def push(*given, **more):
        for code in spoken(*given, **more):
            codes_at.append(len(asked))
            yield code

    monkeypatch.setattr(Speech, "push", push)
    *_, done = echat.stream(SOUND, task="s2s")
    assert done.reply.text == TEXT and done.reply.wave is not None
    assert 0 < codes_at[0] < len(written)


@pytest.mark.parametrize(("ends", "codes"), [(0.9, [0, 0, 0, 0]), (0.3, [1, 1, 1, 1]),
                                             (0.1, [6, 6, 6, 6]), (0.0, [20, 4, 4, 4])])
def test_a_piece_lasts_as_its_median_and_a_clause_is_bounded(echat, monkeypatch, ends, codes):
    """Where no step is sure that the piece ends, speech would be lost in silence."""
    monkeypatch.setattr(talker, "MOST_CODES", 20)
    monkeypatch.setattr(Talker, "_likeliest", lambda *given: (7, ends))
    assert echat.model.talker is not None
    told = list(echat.model.talker.codes([5, 6], (8, 9, 10)))
    ends_at = [place for place, code in enumerate(told) if code is None]
    assert [b - a - 1 for a, b in zip([-1, *ends_at], ends_at, strict=False)] == codes


def test_an_interrupt_stops_the_talker(echat):
    asked = iter([False] * 5 + [True] * 100)
    *_, done = echat.stream(TEXT, task="tts", interrupt=lambda: next(asked))
    assert done.reply.stopped_by == "interrupt" and len(done.reply.speech_tokens) <= 5


def test_a_talker_is_taken_where_one_is_named_and_fits(model_directory, tmp_path):
    assert EChat.load(model_directory, device="cpu").model.talker is None
    home = changed_model(model_directory, tmp_path / "model", talker=".")
    assert EChat.load(home, device="cpu").model.talker is not None
    assert EChat.load(home, device="cpu", talker="none").model.talker is None
    with pytest.raises(CheckpointError, match=f"{CODES} speech codes, where token to wav knows 7"):
        Talker.load(model_directory, 7, torch.device("cpu"))


def test_a_style_has_its_own_voice(model_directory, tmp_path, caplog):
    home = tmp_path / "token2wav"
    shutil.copytree(model_directory / "token2wav", home)
    VoicePrompt.absent(torch.ones(1, 192)).save(home / "voice_SOFT.safetensors")
    voice = Token2Wav.load(home)
    soft = voice([1, 2, 3], voice.styles["SOFT"], seed=0)
    assert list(voice.styles) == ["SOFT"] and voice.in_voice(voice.voice).styles == {}
    assert not torch.equal(soft, voice([1, 2, 3], seed=0))
    echat = EChat.load(model_directory, device="cpu", talker=model_directory, token2wav=home)
    plain, soft, loud = echat.reply_many([TEXT, f"<soft>{TEXT}", f"<LOUD>{TEXT}"], task="tts")
    assert soft.labels.style == "SOFT" and not torch.equal(soft.wave, plain.wave)
    assert torch.allclose(soft.wave, echat.reply(f"<SOFT>{TEXT}", task="tts").wave, atol=1e-4)
    assert torch.equal(loud.wave, plain.wave) and "style LOUD: the voice has SOFT" in caplog.text
