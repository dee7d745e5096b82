"""Claims about importers: each corpus's own layout becomes a raw list that is read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common_utils import make_raw_from_public
from osum_echat.data.manifest import open_source
from osum_echat.records import Labels, Utterance


def sound(path: Path, seconds: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    soundfile.write(path, noise, 16_000)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def made(name: str, root: Path, part: str, *more: str) -> list[Utterance]:
    out = root.parent / "out.list"
    argv = [name, str(root), "--part", part, "--out", str(out), *more]
    assert make_raw_from_public.main(argv) == 0
    source = open_source("made", str(out))
    found = [source.read(unit) for unit in range(len(source))]
    assert all(isinstance(one, Utterance) for one in found)
    assert all(one.user.audio.is_file() for one in found)
    return found


def test_aishell_1_joins_words_and_takes_gender_from_the_speakers(tmp_path):
    root = tmp_path / "data_aishell"
    write(root / "transcript/aishell_transcript_v0.8.txt",
          "BAC009S0002W0122 而 对 楼市\nBAC009S0764W0121 甚至 出现\n")  # fmt: skip
    write(tmp_path / "resource_aishell/speaker.info", "0002 F\n0764 M\n")
    sound(root / "wav/train/S0002/BAC009S0002W0122.wav")
    sound(root / "wav/test/S0764/BAC009S0764W0121.wav")
    (one,) = made("aishell1", root, "test", "--task", "<TRANSCRIBE> <GENDER>")
    assert one.user.reply_text == "甚至出现<MALE>" and one.user.text == "甚至出现"
    assert one.labels == Labels(gender="MALE")
    (plain,) = made("aishell1", root, "test")
    assert plain.user.reply_text == "甚至出现" and plain.task == "<TRANSCRIBE>"


def test_aishell_2_reads_its_scp(tmp_path):
    root = tmp_path / "aishell2"
    write(root / "iOS/test/trans.txt", "IT0011W0001\t换一首歌\n")
    write(root / "iOS/test/wav.scp", "IT0011W0001\twav/T0011/IT0011W0001.wav\n")
    sound(root / "iOS/test/wav/T0011/IT0011W0001.wav")
    (one,) = made("aishell2", root, "iOS/test")
    assert (one.key, one.user.reply_text) == ("IT0011W0001", "换一首歌")


def test_sphinx_reads_its_sentences_and_keys(tmp_path):
    root = tmp_path / "data"
    write(root / "cards/cards.transcription", "<s> ten of clubs  </s> (001)\nfive five (002)\n")
    for name in ("001", "002"):
        sound(root / f"cards/{name}.wav")
    found = made("sphinx", root, "cards")
    assert [(one.key, one.user.reply_text) for one in found] == [
        ("001", "ten of clubs"), ("002", "five five"),
    ]  # fmt: skip


def test_a_line_that_cannot_be_used_costs_its_utterance(tmp_path, capsys):
    header = b"Utterance,Emotion,Dialogue_ID,Utterance_ID\n"
    rows = (b"Hi,joy,0,0", b"caf\xe9,joy,0,1", b"Hi,joy", b"Hi, you,joy,0,2", b"Hi,rage,0,3")
    (tmp_path / "test_sent_emo.csv").write_bytes(header + b"\n".join(rows) + b"\n")
    for number in range(4):
        sound(tmp_path / f"dia0_utt{number}.wav")
    assert len(made("meld", tmp_path, "test")) == 1
    assert "1 without a label, 4 lines" in capsys.readouterr().out
    segments = [{"sid": sid, "begin_time": 0, "end_time": end, "text": text, "subsets": ["S"]}
                for sid, end, text in (("a", 0.1, "x"), ("b", 0.1, "\ud83d"), ("c", None, "x"))]
    audios = [{"path": "dia0_utt0.wav", "segments": segments}, {"path": "gone"}, 7]
    write(tmp_path / "WenetSpeech.json", json.dumps({"audios": audios}))
    assert [one.key for one in made("wenetspeech", tmp_path, "S")] == ["a"]
    assert "4 lines" in capsys.readouterr().out


def test_librispeech_reads_transcripts_and_speakers(tmp_path):
    root = tmp_path / "LibriSpeech"
    write(root / "SPEAKERS.TXT", "; a comment | x\n61   | M | test-clean | 8.08 | Paul\n")
    write(root / "test-clean/61/70968/61-70968.trans.txt",
          "61-70968-0000 HE BEGAN A CONFUSED COMPLAINT\n")  # fmt: skip
    sound(root / "test-clean/61/70968/61-70968-0000.flac")
    (one,) = made("librispeech", root, "test-clean")
    assert one.user.reply_text == "he began a confused complaint"
    assert one.labels.gender == "MALE"


def test_wenetspeech_takes_the_segments_of_a_subset(tmp_path, monkeypatch):
    monkeypatch.setattr("common_utils.public_corpora.read_aloud.READ_BYTES", 50)
    root = tmp_path / "WenetSpeech"
    segments = [
        {"sid": "A_S1", "begin_time": 0.05, "end_time": 0.15, "text": "你好", "subsets": ["L"]},
        {"sid": "A_S2", "begin_time": 0.1, "end_time": 0.2, "text": "再见"},
    ]
    segments[1]["subsets"] = ["TEST_NET"]
    recording = {"aid": "A", "path": "audio/a.wav", "segments": segments}
    write(root / "WenetSpeech.json", json.dumps({"audios": [recording]}, indent=1))
    sound(root / "audio/a.wav")
    (one,) = made("wenetspeech", root, "TEST_NET")
    assert (one.key, one.user.text, one.user.segment_s) == ("A_S2", "再见", (0.1, 0.2))


def test_common_voice_leaves_out_teens_and_the_unlabelled(tmp_path):
    root = tmp_path / "en"
    write(root / "test.tsv", 'client_id\tpath\tsentence\tage\tgender\n'
          'a\t1.wav\tHe said "no.\ttwenties\tmale_masculine\nb\t2.wav\tHi\tteens\tmale\n'
          "c\t3.wav\tHo\tsixties\tfemale\nd\t4.wav\tHa\t\t\n")  # fmt: skip
    for number in range(1, 5):
        sound(root / f"clips/{number}.wav")
    first, second = made("common_voice", root, "test")
    assert first.user.reply_text == 'He said "no.<ADULT><MALE>'
    assert second.labels == Labels(age="OLD", gender="FEMALE")
    assert len(made("common_voice", root, "test", "--task", "asr")) == 4


def test_kaggles_common_voice_is_found_in_its_nested_folder(tmp_path):
    root = tmp_path / "kaggle"
    write(root / "cv-valid-test.csv", "filename,text,age,gender\n"
          "cv-valid-test/sample-000000.wav,hello there,fifties,female\n")  # fmt: skip
    sound(root / "cv-valid-test/cv-valid-test/sample-000000.wav")
    (one,) = made("common_voice", root, "cv-valid-test")
    assert one.user.reply_text == "hello there<ADULT><FEMALE>"


def test_vocalsound_reads_names(tmp_path):
    root = tmp_path / "vocalsound"
    names = ["f0003_0_cough.wav", "m0051_0_throatclearing.wav"]
    listed = [{"wav": f"/somewhere/else/{name}", "labels": "/m/01"} for name in names]
    write(root / "datafiles/te.json", json.dumps({"data": listed}))
    for name in names:
        sound(root / "audio_16k" / name)
    cough, throat = made("vocalsound", root, "te")
    assert cough.task == "<CAPTION>" and cough.user.reply_text == "<COUGH>"
    assert throat.labels == Labels(gender="MALE", event="THROAT CLEARING")


def test_meld_matches_rows_and_sounds_and_tells_of_missing_ones(tmp_path, capsys):
    root = tmp_path / "MELD"
    write(root / "test_sent_emo.csv", "Sr No.,Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n"
          '1,"Why do all you\'re, er",Mark,surprise,0,0\n2,Yes,Rachel,joy,0,1\n')  # fmt: skip
    sound(root / "sounds/dia0_utt0.wav")
    (one,) = made("meld", root, "test")
    assert one.user.reply_text == "Why do all you're, er<SURPRISE>"
    assert "1 without sound" in capsys.readouterr().out


def test_mer_2023_counts_the_worried_as_afraid(tmp_path):
    root = tmp_path / "mer"
    write(root / "test1-label.csv", "name,discrete,valence\nsample_1,worried,-1\n")
    sound(root / "audio/sample_1.wav")
    (one,) = made("mer2023", root, "test1")
    assert (one.task, one.user.reply_text) == ("<EMOTION>", "<FEAR>")


@pytest.mark.parametrize("argv, told", [
    (["librispeech", "nowhere", "--part", "test-clean"], "no utterance of 'test-clean'"),
    (["meld", "nowhere", "--part", "test"], "a table of MELD"),
    (["meld", "nowhere", "--part", "test", "--task", "s2s"], "not a task of understanding"),
])  # fmt: skip
def test_what_is_not_there_is_told_in_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, argv, told
):
    monkeypatch.chdir(tmp_path)
    assert make_raw_from_public.main([*argv, "--out", "out.list"]) == 2
    assert told in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_splits_that_repeat_names_each_get_their_own_sound(tmp_path, capsys):
    header = "Utterance,Emotion,Dialogue_ID,Utterance_ID\n"
    folders = {"train": "train_splits", "dev": "dev_splits_complete",
               "test": "output_repeated_splits_test"}  # fmt: skip
    for number, (part, folder) in enumerate(folders.items(), 1):
        sound(tmp_path / folder / "dia0_utt0.wav", number / 10)
        write(tmp_path / f"{part}_sent_emo.csv", f"\ufeff{header}Hi {part},joy,0,0\r\n")
    for part, folder in folders.items():
        (one,) = made("meld", tmp_path, part)
        assert one.user.audio == tmp_path / folder / "dia0_utt0.wav"
        assert one.user.text == f"Hi {part}"
    (tmp_path / "dev_splits_complete" / "dia0_utt0.wav").unlink()
    with pytest.raises(AssertionError):
        made("meld", tmp_path, "dev")
    sound(tmp_path / "again" / "dia0_utt0.WAV")
    sound(tmp_path / "more" / "dia0_utt0.wav")
    arguments = ["meld", str(tmp_path), "--part", "dev", "--out", str(tmp_path / "x.list")]
    assert make_raw_from_public.main(arguments) == 2
    assert "one name twice" in capsys.readouterr().err
