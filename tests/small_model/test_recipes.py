"""Claims about the recipes of the small model's ear, voice and thinker."""

import itertools
import json
import random
import re
import tarfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common_utils.small_model import (
    acted,
    dialogues,
    speak,
    thinker,
    voice,
    voice_labels,
    waves,
)
from common_utils.small_model.ear import parts_of
from common_utils.small_model.hibari import SAMPLE_RATE_HZ, STYLES, Spoken
from common_utils.small_model.manner import ends_properly, is_fit
from common_utils.small_model.people import is_dev
from common_utils.small_model.pieces import heard_words
from common_utils.small_model.texts import CHITCHAT_FILE
from common_utils.small_model.topics import words as topic_words
from common_utils.small_model.voice import Clause, Row, clauses_of, coded, style_voice
from common_utils.token2wav_recipe.runs import read_lists
from osum_echat import audio, models, weights
from osum_echat.errors import DataError, InputError
from osum_echat.files import write_jsonl
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel
from osum_echat.models.voice_labels import VoiceLabels
from osum_echat.records import Labels, Utterance
from osum_echat.sequence import compose
from osum_echat.tasks import TASKS
from osum_echat.vocab import Vocab
from tests.tiny_network import SETTINGS, network

# The ear: what it writes with, what it hears, and what it is measured by.

def test_words_are_written_as_they_are_heard_and_a_list_tells_known_labels_only():
    told = heard_words("Well-known: it's Tom's, \"isn’t\" it?")
    assert told == " well known it's tom's isn't it" and heard_words("I have 2 dogs") is None
    assert heard_words("...") == ""
    made = waves.record("k", "k.flac", " hi", {"gender": "MALE", "age": None, "event": "LAUGH"})
    utterance = Utterance.from_json(json.loads(json.dumps(made)), "a list", Path())
    assert utterance.user.text == " hi" and utterance.labels == Labels(gender="MALE", event="LAUGH")
    assert waves.record("k", "k.flac", "", {"event": "SIGH"})["txt"] == "<SIGH>"


def test_another_room_keeps_the_length_and_repeats_by_its_seed():
    around = waves.Surroundings(tuple(np.ones((1, 8_000), np.float32)),
                                (np.exp(-np.arange(800) / 90).astype(np.float32),))  # fmt: skip
    tone = (0.1 * np.sin(np.arange(9_600) / 11)).astype(np.float32)
    made = [waves.elsewhere(tone, around, np.random.default_rng(seed), speed=False)
            for seed in (1, 1, 2, 3, 4, 5)]  # fmt: skip
    assert all(len(one) == len(tone) and np.abs(one).max() <= 1 for one in made)
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_speakers_are_kept_out_whole():
    lines = [{"speaker": f"eg_{number % 40:06d}", "name": str(number)} for number in range(400)]
    kept = {line["speaker"] for line in lines if is_dev(line)}
    assert 0 < len(kept) < 12 and not kept & {line["speaker"] for line in lines if not is_dev(line)}


def test_voice_labels_are_learnt_from_lists_whose_statistics_are_kept(tmp_path, monkeypatch):
    """A low tone is a man's voice, a high one a woman's."""
    checkpoint.save(tmp_path / "start", network())
    tones = {
        name: 0.1 * np.sin(np.arange(9600) * step).astype(np.float32)
        for name, step in (("MALE", 0.05), ("FEMALE", 0.9))
    }
    for name in ("made", "made_dev"):
        rows = [waves.kept(tmp_path / "lists", name, f"{number}{one}", tone, " hi", {"gender": one})
                for number in range(12) for one, tone in tones.items()]  # fmt: skip
        write_jsonl(tmp_path / "lists" / f"{name}.list", rows)
    given = {"model": "start", "out": "out", "kept": "kept", "lists": "lists",
             "people": "lists/made.list"}  # fmt: skip
    words = [f"--{name}={tmp_path / place}" for name, place in given.items()] + ["--most=2"]
    voice_labels.main([*words, "--epochs", "20"])
    found = VoiceLabels.load(tmp_path / "out" / voice_labels.FILE)
    for name, tone in tones.items():
        told = found.surest(network().encoder, audio.log_mel(torch.from_numpy(tone), 6))
        assert told["gender"][0] == name and "event" not in told
    monkeypatch.setattr(voice_labels, "statistics", None)
    voice_labels.main([*words, "--epochs", "1"])
    checkpoint.save(tmp_path / "start", network(seed=1))
    with pytest.raises(TypeError):      # those of another encoder are not kept ones
        voice_labels.main([*words, "--epochs", "1"])


def test_the_file_of_voice_labels_tells_what_was_learnt(tmp_path, monkeypatch):
    """Of people and made voices: both networks' scores, added."""
    torch.manual_seed(1)
    rows, figures = torch.randn(40, 30), torch.randn(40, 3)
    network, manner = voice_labels.Network(30).eval(), voice_labels.Manner(rows, figures).eval()
    made = voice_labels.tensors(network, manner, torch.zeros(30), torch.ones(30))
    weights.write_safetensors_file(tmp_path / voice_labels.FILE, made)
    found = VoiceLabels.load(tmp_path / voice_labels.FILE)
    with torch.inference_mode():
        first, _, gender, _ = network(rows)
        by_manner = manner(rows)
    scores = (first + by_manner).log_softmax(1), gender.log_softmax(1)
    for row in range(5):
        given = rows[row]
        monkeypatch.setattr(models.voice_labels, "statistics", lambda *_, given=given: given)
        told = found.surest(None, None)
        for kind, one in zip(("emotion", "gender"), scores, strict=True):
            name, score = voice_labels.KINDS[kind][int(one[row].argmax())], float(one[row].max())
            assert told[kind] == (name, pytest.approx(score, abs=5e-3))


def test_a_recording_is_spoken_in_another_way():
    """A buzz of 130 Hz: its pitch and length are those of the feeling."""
    turns = 2 * np.pi * 130 * np.arange(16_000) / 16_000
    buzz = sum(np.sin(turns * one) / one for one in range(1, 30)).astype(np.float32) * 0.2
    parts, own = acted.analysed(buzz), acted.prosody(buzz)
    assert own is not None and own[0] == pytest.approx(12 * np.log2(1.3), abs=0.2)
    for name, acting in acted.ACTING.items():
        made = acted.acted(parts, acting, np.random.default_rng(2))
        figures = acted.prosody(made)
        assert figures is not None
        low, high = acting.pitch
        assert low - 0.5 <= figures[0] - own[0] <= high + 0.5, name
        assert len(buzz) / acting.rate[1] * 0.97 <= len(made) <= len(buzz) / acting.rate[0] * 1.03
        assert np.array_equal(made, acted.acted(parts, acting, np.random.default_rng(2))), name
    assert acted.prosody(np.zeros(8_000, np.float32)) is None


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


# The voice: what the talker reads, how codes belong to its text, what is put out.

UNIT_SAMPLES = SAMPLE_RATE_HZ // 25


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocab:
    folder = tmp_path_factory.mktemp("tokenizer")
    voice.write_phonemes(folder)
    return Vocab.from_directory(folder, speech_codes=512)


def spoken(text: str, first_s: float = 0.2) -> Spoken:
    """Each letter a unit long, silence before and behind."""
    wave = np.zeros(round(first_s * SAMPLE_RATE_HZ) + (len(text) + 5) * UNIT_SAMPLES, np.float32)
    return Spoken(wave, text, tuple(first_s + 0.04 * place for place in range(len(text))))


def test_each_phoneme_with_its_stress_is_one_id_and_fixed_words_too(vocab):
    pieces = voice.pieces_of("<SOFT>həlˈO ðˈɛɹ.")
    assert pieces == ["<SOFT>", "h", "ə", "l", "ˈO", " ð", "ˈɛ", "ɹ", "."]
    assert len(vocab.encode("<SOFT>həlˈO ðˈɛɹ.")) == len(pieces)
    assert all(len(vocab.encode(mark)) == 1 for mark in voice.marks())
    assert vocab.encode("%") == vocab.encode("\ue000") == vocab.encode(voice.PAD)


@pytest.mark.parametrize("place", ["file", "file/x"])
def test_an_output_that_cannot_be_is_one_line(place, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert voice.main(["phonemes", "--out", str(tmp_path / place)]) == 2
    assert capsys.readouterr().err.endswith("choose another place\n")


def test_sentences_are_cut_at_marks_or_joined_and_no_letter_is_lost():
    texts = ("wˈɛl, jˈu.", "ˈA bˈi sˈi.")
    rows = [list(clauses_of([spoken(text) for text in texts], "CALM", random.Random(seed)))
            for seed in range(30)]  # fmt: skip
    assert {len(clauses) for clauses in rows} == {1, 2, 3}
    for clauses in rows:
        assert " ".join(one.text.removeprefix("<CALM>") for one in clauses) == " ".join(texts)
        for one in clauses:
            assert len(one.starts_s) == len(one.text.removeprefix("<CALM>")) + 1
            assert list(one.starts_s) == sorted(one.starts_s)


def test_codes_go_to_the_piece_that_they_sound():
    said = spoken("ab cd.")
    clauses = list(clauses_of([said], "CALM", random.Random(0)))
    (made,) = coded(clauses, range(5 + 6 + 5))
    # Silence is the mark's, c begins behind its space, and the last piece has what is left.
    assert voice.pieces_of(made.text) == ["<CALM>", "a", "b", " c", "d", "."]
    assert made.starts == (0, 5, 6, 8, 9, 10) and made.codes == tuple(range(16))


def test_a_row_becomes_a_talkers_row(vocab):
    clauses = [Clause("<CALM>hˈi,", (0.0, 0.04, 0.08, 0.12, 0.16)),
               Clause("<CALM>jˈu.", (0.2, 0.2, 0.24, 0.24, 0.28))]  # fmt: skip
    row = Row("k", "CALM", "Hi, you.", tuple(clauses), np.zeros(1, np.float32))
    raw = json.loads(json.dumps(voice.raw_row(row, coded(clauses, range(9)))))
    utterance = Utterance.from_json(raw, "x", Path())
    (earlier,), user = utterance.history, utterance.user
    assert earlier.reply_speech + user.reply_speech == tuple(range(9))
    laid = compose(TASKS["tts_streaming"], vocab, history=utterance.history,
                   user_text=user.reply_text, answer_text=user.reply_text,
                   answer_speech=user.reply_speech, speech_starts=user.speech_starts)  # fmt: skip
    assert sum(number >= vocab.text_rows for number in laid.ids) == 9 + 4


def test_a_stopped_list_of_rows_goes_on_with_the_next_row(tmp_path):
    class Maker:
        """Rows of one second."""

        def rows(self, first=0):
            for number in itertools.count(first):
                clause = Clause("<CALM>ab.", (0.0, 0.1, 0.2, 0.3))
                yield Row(f"train-{number:06d}", "CALM", "ab", (clause,), np.zeros(22_050))

    def make(hours: float, settings: str = "same") -> list[str]:
        voice.write_rows(Maker(), lambda wave: [7] * 25, out, hours, settings)
        return [json.loads(line)["key"] for line in out.read_text().splitlines()]

    out = tmp_path / "rows.list"
    assert make(2 / 3600) == ["train-000000", "train-000001"]
    out.write_text(out.read_text() + '{"key": "train-0000')
    assert make(4 / 3600) == [f"train-00000{number}" for number in range(4)]
    with pytest.raises(InputError, match="made with other units"):
        make(5 / 3600, "other")
    for seconds in (1, 2):
        voice.write_waves(Maker(), tmp_path, seconds / 3600)
        rows = (tmp_path / "waves.list").read_text().splitlines()
        keys = [f"train-00000{number}" for number in range(seconds + 1)]
        assert [json.loads(line)["key"] for line in rows] == keys
        assert (tmp_path / f"waves/{keys[-1]}.wav").is_file()


LINE = {"tar": "s.tar", "name": "s/a.flac", "speaker": "p"}


@pytest.mark.parametrize(("lines", "told"), [
    ([LINE, LINE | {"name": "t/a.flac"}], "line 2: a second a"),
    ([{"tar": "s.tar"}], "line 1: no name"), ([LINE | {"name": "b"}], "1 sounds that s.jsonl"),
    ([LINE | {"tar": "t.tar"}], "cannot be read"), ([LINE], None),
])  # fmt: skip
def test_recordings_are_told_apart_and_all_there(lines, told, tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000), 16_000)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "a.flac", "s/a.flac")
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=told) if told else nullcontext():
        assert len(list(waves.recordings(tmp_path, "s", ("speaker",)))) == 1


def test_a_piece_of_speech_is_made_again_at_another_length(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000), 16_000)
    (tmp_path / "a.list").write_text('{"wav": "a.flac"}\n{"wav": "a.flac"}\n')
    made = [speak.is_made(tmp_path / "a.list", seconds) for seconds in (0.5, 1.5, 2.5)]
    assert made == [False, True, False] and not speak.is_made(tmp_path / "b.list", 1.5)


def write_voices(folder: Path, styles: tuple[str, ...]) -> Path:
    (folder / "waves").mkdir()
    rows = []
    for style in styles:
        wave = 0.1 * np.random.default_rng(1).standard_normal(70 * UNIT_SAMPLES)
        soundfile.write(folder / f"waves/{style}.wav", wave, SAMPLE_RATE_HZ)
        rows.append({"key": style, "wav": f"waves/{style}.wav", "voice": style,
                     "extra": {"speech_token": [1, 2] * 35}})  # fmt: skip
    (folder / "voice.list").write_text("\n".join(map(json.dumps, rows)))
    return folder / "voice.list"


def test_each_style_has_a_vector_and_a_recording_of_its_own(tmp_path):
    rows = read_lists([write_voices(tmp_path, tuple(STYLES))])
    voices = [style_voice(rows, style) for style in STYLES]
    vectors = torch.cat([voice.speaker for voice in voices])
    assert torch.allclose(vectors @ vectors.T, torch.eye(len(STYLES)), atol=1e-5)
    assert all(voice.tokens.shape == (1, 70) and voice.mel.shape[1] == 241 for voice in voices)
    with pytest.raises(DataError, match="no recording in the style SOFT"):
        style_voice(rows[:1], "SOFT")


# The thinker's rows: fitting replies, openings by label, lists to read.

SIZES = {"topics": 300, "chats": 40, "people": 10, "world": 40, "safety": 120, "wordless": 40,
         "dialogues": 20}  # fmt: skip
SAID = (
    "I really love my two dogs", "Dogs are the best friends", "What movies did you watch?",
    "That one with the cats was good", "Call me at 555 123 4567", "I have snow here today",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dialogues.Example]:
    parts = tmp_path_factory.mktemp("parts")
    talks = {str(number): {"messages": [[{"text": text}] for text in SAID[number % 3 :]]}
             for number in range(30)}  # fmt: skip
    place = parts / CHITCHAT_FILE
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(talks))
    return dialogues.examples(parts, 1, SIZES, Longest())


class Longest:
    """Ranks replies by their length."""

    def lifts(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [len(reply) ** 2 for _, reply in pairs]


def test_examples_fit_are_the_same_again_and_hold_nothing_private(found):
    for one in found:
        assert ends_properly(one.reply), one
        assert "555" not in one.question
        if one.source in ("topics", "chats", "people"):
            assert is_fit(one.question, one.reply, one.labels), one
    assert {one.source for one in found} == {*SIZES}


def test_whoever_may_hurt_himself_is_told_of_help_and_nothing_said_is_nothing_heard(found):
    words = tuple(topic_words("safety")["selfharm"]["say"].lower().split(" | "))
    own = [one for one in found if one.source == "safety" and one.question.lower().endswith(words)]
    assert len(own) > 20
    for one in own:
        assert any(name in one.reply for name in ("988", "crisis", "emergency", "helpline")), one
        assert one.labels.style == "SOFT" and one.labels.event != "LAUGH"
    silent = [one for one in found if one.source == "wordless" and one.labels.emotion is None]
    assert silent and all(one.heard == "" for one in silent)
    assert all(re.search("hear|microphone|repeat", one.reply) for one in silent)


def test_lists_are_read_as_records_and_no_reply_crowds_them(found, tmp_path: Path):
    sizes = thinker.write_lists(found, tmp_path)
    assert sizes["s2s_think"] > sizes["s2t_think"] > 0 and sizes["history"] > 0
    for path in (tmp_path / "train").glob("*.list"):
        for line in path.read_text().splitlines():
            utterance = Utterance.from_json(json.loads(line), path.name, tmp_path)
            assert utterance.user.reply_text
    written = [one.reply for one in found if one.source not in ("safety", "wordless")]
    most = max(4, int(dialogues.MOST_ALIKE * len(found)))
    assert max(map(written.count, set(written))) <= most
