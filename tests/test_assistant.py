"""Claims about the assistant: what goes in reaches the model, what comes out is taken apart."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from osum_echat import EChat, Reply, assistant
from osum_echat.errors import CheckpointError, ConfigError, InputError
from osum_echat.generation.decoder import Generated, Limits, Timings
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.sequence import Sequence

THOUGHT = (
    "<think>The user said: i lost my kite, age: <CHILD>, gender: <MALE>, emotion: <SAD>, "
    "sound event: <CRY>, reply emotion: <SOFT><think end>"
)
LABELS = Labels("CHILD", "MALE", "SAD", "CRY", "SOFT")


@pytest.fixture(scope="module")
def echat(model_directory: Path) -> EChat:
    return EChat.load(model_directory, device="cpu")


@pytest.fixture
def scripted(
    echat: EChat, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[Sequence]]:
    """Have the network say a given text; returns the rows it was asked."""

    def script(text: str) -> list[Sequence]:
        rows = []

        def decode(model, row, vocab, task, *args, **kwargs):
            rows.append(row)
            codes = [1, 2, 3] if task.speaks else []
            times = Timings(0.1, 0.1, 0.2, None, 0.3)
            return Generated(list(vocab.encode(text)), codes, "end", times)

        monkeypatch.setattr(assistant.decoder, "decode", decode)
        return rows

    return script


def opened(echat: EChat, row: Sequence) -> str:
    return echat.vocab.decode(row.ids)


def test_a_spoken_question_gets_a_spoken_reply(echat, question_wav):
    reply = echat.reply(question_wav, task="s2s", seed=1)
    assert len(reply.speech_tokens) > 0
    assert reply.wave is not None and reply.wave.ndim == 1 and torch.isfinite(reply.wave).all()
    assert reply.sample_rate_hz == 22_050
    assert reply.audio_in_s == 1.0
    times = reply.timings
    assert 0 < times.encode_s < times.first_text_s < times.first_speech_token_s
    assert times.first_speech_token_s < times.first_audio_s <= times.total_s


def test_the_same_seed_gives_the_same_reply_and_another_another(echat, question_wav):
    first, again, other = (echat.reply(question_wav, task="s2s", seed=seed) for seed in (1, 1, 2))
    assert first.speech_tokens == again.speech_tokens
    assert torch.equal(first.wave, again.wave)
    assert first.speech_tokens != other.speech_tokens


def test_bytes_and_paths_and_utterances_are_heard_alike(echat, question_wav):
    turn = Turn(audio=question_wav)
    sources = (question_wav, str(question_wav), question_wav.read_bytes(),
               Utterance("one", "s2s", turn))  # fmt: skip
    replies = [echat.reply(source, task="s2s").speech_tokens for source in sources]
    assert len(set(replies)) == 1


def test_a_text_is_spoken_and_its_style_tag_is_not(echat):
    reply = echat.reply("<SOFT>I am sorry.", task="tts")
    assert reply.text == "I am sorry."
    assert reply.wave is not None and reply.audio_in_s is None


def test_without_speech_the_text_comes_alone(echat, question_wav):
    reply = echat.reply(question_wav, task="s2s", speak=False)
    assert reply.wave is None and reply.speech_tokens == () and reply.audio_out_s is None


def test_a_label_thought_is_taken_apart(echat, question_wav, scripted):
    rows = scripted(THOUGHT.removeprefix("<think>The user said:") + "I am so sorry, little one.")
    reply = echat.reply(question_wav, task="s2s_think", thinking="label")
    assert opened(echat, rows[0]).endswith("assistant\n<think>The user said:")
    assert reply.heard == "i lost my kite"
    assert reply.labels == LABELS
    assert reply.text == "I am so sorry, little one."
    assert reply.thought.startswith("The user said: i lost my kite")


def test_a_natural_thought_is_told_apart_from_the_reply(echat, question_wav, scripted):
    rows = scripted(" a boy who cries.<think end>Oh dear.")
    reply = echat.reply(question_wav, task="s2t_think", thinking="natural")
    assert opened(echat, rows[0]).endswith("<think>I hear")
    assert (reply.thought, reply.text) == ("I hear a boy who cries.", "Oh dear.")
    assert reply.heard is None and reply.labels == Labels()


def test_understanding_gives_words_and_the_labels_asked_for(echat, question_wav, scripted):
    rows = scripted("i lost my kite<CRY><CHILD><MALE><SAD>")
    reply = echat.reply(question_wav, task="understand")
    assert "Write down the words and all labels." in opened(echat, rows[0])
    assert reply.heard == "i lost my kite"
    assert reply.labels == Labels("CHILD", "MALE", "SAD", "CRY")


def test_labels_without_a_prompt_of_their_own_are_picked_from_the_full_answer(
    echat, question_wav, scripted
):
    rows = scripted("i lost my kite<CRY><CHILD><MALE><SAD>")
    reply = echat.reply(question_wav, task="understand", labels=("emotion", "age"))
    assert "all labels" in opened(echat, rows[0])
    assert reply.labels == Labels(age="CHILD", emotion="SAD")


def test_a_prompt_of_the_users_own_is_asked(echat, question_wav, scripted):
    rows = scripted("i lost my kite<SAD>")
    reply = echat.reply(question_wav, task="<TRANSCRIBE> <EMOTION>", prompt="What do you hear?")
    assert "What do you hear?" in opened(echat, rows[0])
    assert reply.labels == Labels(emotion="SAD")


def test_hearing_again_asks_for_the_words(echat, question_wav, scripted):
    rows = scripted("hello there")
    reply = echat.reply(question_wav, task="s2t", hear=True)
    assert reply.heard == "hello there" and len(rows) == 2
    assert "Write down the words." in opened(echat, rows[1])


def test_earlier_turns_come_before_the_question(echat, question_wav, scripted):
    rows = scripted("Yes.")
    history = (Turn(audio=question_wav, reply_text="Is it red?", reply_speech=(4, 5)),)
    reply = echat.reply(Utterance("two", "s2s", Turn(audio=question_wav), history=history))
    assert len(rows[0].clips) == 2 and "Is it red?" in opened(echat, rows[0])
    assert reply.task == "<S2TCHAT> <TEXT2TOKEN> <HISTORY>"


def test_the_models_own_sampling_is_used_and_greedy_overrides_it(
    echat, question_wav, monkeypatch
):
    used = []
    inner = assistant.decoder.decode

    def decode(model, row, vocab, task, sampling, **kwargs):
        used.append((sampling.greedy, kwargs["speech_sampling"].greedy))
        return inner(model, row, vocab, task, sampling, **kwargs)

    monkeypatch.setattr(assistant.decoder, "decode", decode)
    monkeypatch.setattr(assistant, "LIMITS", Limits(8, 16))
    for greedy in (False, True):
        echat.reply(question_wav, task="s2s", greedy=greedy, speak=False)
    assert used == [(True, False), (True, True)]


def test_a_reply_shows_no_samples_when_printed(echat):
    reply = echat.reply("Hello.", task="tts")
    assert isinstance(reply, Reply) and "tensor" not in repr(reply)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "s2x"}, "task 's2x': not one of"),
        ({"task": "asr", "labels": ("age",)}, "labels: task asr takes none"),
        ({"task": "understand", "labels": ("mood",)}, "'mood' is not one of emotion, age"),
        ({"task": "s2s", "prompt": "What?"}, "prompt: task s2s takes none"),
        ({"task": "s2t", "thinking": "label"}, "thinking: task s2t does not think"),
        ({"task": "s2t_think", "thinking": "loud"}, "choose label or natural"),
        ({"task": "tts"}, "task tts reads: give it a text"),
    ],
)
def test_what_does_not_fit_together_is_told(echat, question_wav, options, message):
    with pytest.raises((InputError, ConfigError), match=message):
        echat.reply(question_wav, **options)


def test_an_empty_text_is_refused(echat):
    with pytest.raises(InputError, match="t2t reads: give it a text that is not empty"):
        echat.reply("  ", task="t2t")


def test_a_silent_load_cannot_speak(model_directory, question_wav):
    silent = EChat.load(model_directory, device="cpu", speaks=False)
    with pytest.raises(InputError, match="loaded with speaks=False"):
        silent.reply(question_wav, task="s2s")
    assert silent.reply(question_wav, task="asr").wave is None


def test_a_model_of_one_kind_of_thought_refuses_the_other(model_directory, question_wav, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model_directory, copy)
    settings = yaml.safe_load((copy / "model.yaml").read_text())
    (copy / "model.yaml").write_text(yaml.safe_dump(settings | {"thinking": "natural"}))
    natural = EChat.load(copy, device="cpu", speaks=False)
    with pytest.raises(InputError, match="thinks in the natural way only"):
        natural.reply(question_wav, task="s2t_think", thinking="label")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thinking": "often"}, "thinking 'often'; write one of label, natural, both"),
        ({"template": "latin"}, "template 'latin': not one of"),
        ({"sampling": {"text": {"heat": 1}}}, "sampling.text: .*heat"),
        ({"sampling": {"text": {"top_p": 7}}}, "sampling.text: top_p 7"),
    ],
)
def test_a_model_yaml_that_cannot_be_used_is_told(model_directory, tmp_path, change, message):
    copy = tmp_path / "model"
    shutil.copytree(model_directory, copy)
    settings = yaml.safe_load((copy / "model.yaml").read_text())
    (copy / "model.yaml").write_text(yaml.safe_dump(settings | change))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        EChat.load(copy)
