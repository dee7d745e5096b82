"""The voice's recipe: what the talker reads, how codes belong to its text, what is put out."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common_utils.small_model import export_voice, phonemes, speech_rows
from common_utils.small_model.hibari import SAMPLE_RATE_HZ, STYLES, Spoken
from common_utils.small_model.speech_rows import Clause, Row, clauses_of, coded
from common_utils.token2wav_recipe import train_flow
from common_utils.token2wav_recipe.runs import read_list
from common_utils.token2wav_recipe.train_flow import FlowTraining
from osum_echat.errors import DataError
from osum_echat.records import Utterance
from osum_echat.sequence import compose
from osum_echat.tasks import TASKS
from osum_echat.training import experiment
from osum_echat.vocab import Vocab

CONF = Path(__file__).parents[2] / "conf" / "small"
UNIT_SAMPLES = SAMPLE_RATE_HZ // 25


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocab:
    folder = tmp_path_factory.mktemp("tokenizer")
    phonemes.write(folder)
    return Vocab.from_directory(folder, speech_codes=512)


def spoken(text: str, first_s: float = 0.2) -> Spoken:
    """Each letter a unit long, silence before and behind."""
    wave = np.zeros(round(first_s * SAMPLE_RATE_HZ) + (len(text) + 5) * UNIT_SAMPLES, np.float32)
    return Spoken(wave, text, tuple(first_s + 0.04 * place for place in range(len(text))))


def test_each_phoneme_with_its_stress_is_one_id_and_fixed_words_too(vocab):
    pieces = phonemes.pieces_of("<SOFT>həlˈO ðˈɛɹ.")
    assert pieces == ["<SOFT>", "h", "ə", "l", "ˈO", " ð", "ˈɛ", "ɹ", "."]
    assert len(vocab.encode("<SOFT>həlˈO ðˈɛɹ.")) == len(pieces)
    assert all(len(vocab.encode(mark)) == 1 for mark in phonemes.marks())
    assert vocab.encode("%") == vocab.encode("\ue000") == vocab.encode(phonemes.PAD)


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
    assert phonemes.pieces_of(made.text) == ["<CALM>", "a", "b", " c", "d", "."]
    assert made.starts == (0, 5, 6, 8, 9, 10) and made.codes == tuple(range(16))


def test_a_row_becomes_a_talkers_row(vocab):
    clauses = [Clause("<CALM>hˈi,", (0.0, 0.04, 0.08, 0.12, 0.16)),
               Clause("<CALM>jˈu.", (0.2, 0.2, 0.24, 0.24, 0.28))]  # fmt: skip
    row = Row("k", "CALM", "Hi, you.", tuple(clauses), np.zeros(1, np.float32))
    raw = json.loads(json.dumps(speech_rows.raw_row(row, coded(clauses, range(9)))))
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

    def make(hours: float) -> list[str]:
        speech_rows.write_rows(Maker(), lambda wave: [7] * 25, out, hours, 3)
        return [json.loads(line)["key"] for line in out.read_text().splitlines()]

    out = tmp_path / "rows.list"
    assert make(2 / 3600) == ["train-000003", "train-000004"]
    out.write_text(out.read_text() + '{"key": "train-0000')
    assert make(4 / 3600) == [f"train-00000{number}" for number in (3, 4, 5, 6)]


def test_the_talkers_file_can_be_read():
    assert experiment.load(CONF / "talker.yaml").engine.speech_noise > 0


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
    rows = read_list(write_voices(tmp_path, tuple(STYLES)))
    voices = [export_voice.style_voice(rows, style) for style in STYLES]
    vectors = torch.cat([voice.speaker for voice in voices])
    assert torch.allclose(vectors @ vectors.T, torch.eye(len(STYLES)), atol=1e-5)
    assert all(voice.tokens.shape == (1, 70) and voice.mel.shape[1] == 241 for voice in voices)
    with pytest.raises(DataError, match="no recording in the style SOFT"):
        export_voice.style_voice(rows[:1], "SOFT")


def test_the_rows_of_a_flow_get_the_vectors_of_their_voices(tmp_path):
    listed = write_voices(tmp_path, ("CALM", "SOFT"))
    export_voice.write_styles(tmp_path / "styles")
    voices = {style: str(tmp_path / f"styles/{style}.safetensors") for style in ("CALM", "SOFT")}
    training = FlowTraining((str(listed),), str(tmp_path), voices=voices)
    found = train_flow.record(training)
    wanted = export_voice.style_vectors()
    assert torch.equal(found.speakers, torch.cat((wanted["CALM"], wanted["SOFT"])))
    with pytest.raises(DataError, match="voice 'SOFT' is none of CALM"):
        train_flow.record(FlowTraining((str(listed),), "x", voices={"CALM": voices["CALM"]}))
