"""Claims about importers: each corpus's own layout becomes a raw list that is read back."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from common_utils import make_raw_from_public
from osum_echat.records import Labels, Utterance
from tests.common_utils.reading import read_all, write_noise


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def made(name: str, root: Path, part: str, *more: str) -> list[Utterance]:
    out = root.parent / "out.list"
    argv = [name, str(root), "--part", part, "--out", str(out), *more]
    assert make_raw_from_public.main(argv) == 0
    found = read_all(out)
    assert all(isinstance(one, Utterance) for one in found)
    assert all(one.user.audio.is_file() for one in found)
    return found


SEGMENTS = [
    {"sid": "A_S1", "begin_time": 0.05, "end_time": 0.15, "text": "你好", "subsets": ["L"]},
    {"sid": "A_S2", "begin_time": 0.1, "end_time": 0.2, "text": "再见", "subsets": ["TEST_NET"]},
]
RECORDING = {"aid": "A", "path": "audio/a.wav", "segments": SEGMENTS}
VOCAL = ("f0003_0_cough.wav", "m0051_0_throatclearing.wav")
# Corpus, part, texts and sounds below its folder; key, reply and labels of what is found.
LAYOUTS = (
    ("aishell1", "test", {
        "transcript/aishell_transcript_v0.8.txt":
            "BAC009S0002W0122 而 对 楼市\nBAC009S0764W0121 甚至 出现\n",
        "../resource_aishell/speaker.info": "0002 F\n0764 M\n",
    }, ("wav/train/S0002/BAC009S0002W0122.wav", "wav/test/S0764/BAC009S0764W0121.wav"),
     [("BAC009S0764W0121", "甚至出现", Labels(gender="MALE"))]),
    ("aishell2", "iOS/test", {
        "iOS/test/trans.txt": "IT0011W0001\t换一首歌\n",
        "iOS/test/wav.scp": "IT0011W0001\twav/T0011/IT0011W0001.wav\n",
    }, ("iOS/test/wav/T0011/IT0011W0001.wav",), [("IT0011W0001", "换一首歌", Labels())]),
    ("sphinx", "cards", {
        "cards/cards.transcription": "<s> ten of clubs  </s> (001)\nfive five (002)\n",
    }, ("cards/001.wav", "cards/002.wav"),
     [("001", "ten of clubs", Labels()), ("002", "five five", Labels())]),
    ("librispeech", "test-clean", {
        "SPEAKERS.TXT": "; a comment | x\n61   | M | test-clean | 8.08 | Paul\n",
        "test-clean/61/70968/61-70968.trans.txt": "61-70968-0000 HE BEGAN A COMPLAINT\n",
    }, ("test-clean/61/70968/61-70968-0000.flac",),
     [("61-70968-0000", "he began a complaint", Labels(gender="MALE"))]),
    ("wenetspeech", "TEST_NET", {"WenetSpeech.json": json.dumps({"audios": [RECORDING]}, indent=1)},
     ("audio/a.wav",), [("A_S2", "再见", Labels(), (0.1, 0.2))]),
    ("common_voice", "test", {
        "test.tsv": 'client_id\tpath\tsentence\tage\tgender\n'
        'a\t1.wav\tHe said "no.\ttwenties\tmale_masculine\nb\t2.wav\tHi\tteens\tmale\n'
        "c\t3.wav\tHo\tsixties\tfemale\nd\t4.wav\tHa\t\t\n",
    }, [f"clips/{number}.wav" for number in range(1, 5)],
     [("1", 'He said "no.<ADULT><MALE>', Labels(age="ADULT", gender="MALE")),
      ("3", "Ho<OLD><FEMALE>", Labels(age="OLD", gender="FEMALE"))]),
    ("common_voice", "cv-valid-test", {      # Kaggle's, in its nested folder
        "cv-valid-test.csv": "filename,text,age,gender\n"
        "cv-valid-test/sample-000000.wav,hello there,fifties,female\n",
    }, ("cv-valid-test/cv-valid-test/sample-000000.wav",),
     [("sample-000000", "hello there<ADULT><FEMALE>", Labels(age="ADULT", gender="FEMALE"))]),
    ("vocalsound", "te", {
        "datafiles/te.json": json.dumps({"data": [{"wav": f"/other/{name}"} for name in VOCAL]}),
    }, [f"audio_16k/{name}" for name in VOCAL],
     [("f0003_0_cough", "<COUGH>", Labels(gender="FEMALE", event="COUGH")),
      ("m0051_0_throatclearing", "<THROAT CLEARING>",
       Labels(gender="MALE", event="THROAT CLEARING"))]),
    ("meld", "test", {
        "test_sent_emo.csv": "Sr No.,Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n"
        '1,"Why do all you\'re, er",Mark,surprise,0,0\n2,Yes,Rachel,joy,0,1\n',
    }, ("sounds/dia0_utt0.wav",),
     [("test_dia0_utt0", "Why do all you're, er<SURPRISE>", Labels(emotion="SURPRISE"))]),
    ("mer2023", "test1", {"test1-label.csv": "name,discrete,valence\nsample_1,worried,-1\n"},
     ("audio/sample_1.wav",), [("sample_1", "<FEAR>", Labels(emotion="FEAR"))]),
)  # fmt: skip


def lay_out(root: Path, texts: dict[str, str], sounds: Sequence[str]) -> Path:
    for name, text in texts.items():
        write(root / name, text)
    for name in sounds:
        write_noise(root / name)
    return root


@pytest.mark.parametrize(("name", "part", "texts", "sounds", "wanted"), LAYOUTS,
                         ids=[f"{row[0]}-{row[1]}" for row in LAYOUTS])  # fmt: skip
def test_each_corpus_is_read_in_its_own_layout(
    tmp_path, monkeypatch, name, part, texts, sounds, wanted
):
    monkeypatch.setattr("common_utils.public_corpora.READ_BYTES", 50)
    found = made(name, lay_out(tmp_path / "root", texts, sounds), part)
    assert [(one.key, one.user.reply_text, one.labels,
             *((one.user.segment_s,) if one.user.segment_s else ())) for one in found] == wanted


def test_what_is_asked_for_decides_what_is_left_out(tmp_path):
    name, part, texts, sounds, _ = LAYOUTS[0]
    root = lay_out(tmp_path / "aishell", texts, sounds)
    (one,) = made(name, root, part, "--task", "<TRANSCRIBE> <GENDER>")
    assert one.user.reply_text == "甚至出现<MALE>" and one.user.text == "甚至出现"
    name, part, texts, sounds, _ = LAYOUTS[5]
    assert len(made(name, lay_out(tmp_path / "en", texts, sounds), part, "--task", "asr")) == 4


def test_a_line_that_cannot_be_used_costs_its_utterance(tmp_path, capsys):
    header = b"Utterance,Emotion,Dialogue_ID,Utterance_ID\n"
    rows = (b"Hi,joy,0,0", b"caf\xe9,joy,0,1", b"Hi,joy", b"Hi, you,joy,0,2", b"Hi,rage,0,3")
    (tmp_path / "test_sent_emo.csv").write_bytes(header + b"\n".join(rows) + b"\n")
    for number in range(4):
        write_noise(tmp_path / f"dia0_utt{number}.wav")
    assert len(made("meld", tmp_path, "test")) == 1
    assert "1 without a label, 4 lines" in capsys.readouterr().out
    segments = [{"sid": sid, "begin_time": 0, "end_time": end, "text": text, "subsets": ["S"]}
                for sid, end, text in (("a", 0.1, "x"), ("b", 0.1, "\ud83d"), ("c", None, "x"))]
    audios = [{"path": "dia0_utt0.wav", "segments": segments}, {"path": "gone"}, 7]
    write(tmp_path / "WenetSpeech.json", json.dumps({"audios": audios}))
    assert [one.key for one in made("wenetspeech", tmp_path, "S")] == ["a"]
    assert "4 lines" in capsys.readouterr().out


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
        write_noise(tmp_path / folder / "dia0_utt0.wav", seconds=number / 10)
        write(tmp_path / f"{part}_sent_emo.csv", f"\ufeff{header}Hi {part},joy,0,0\r\n")
    for part, folder in folders.items():
        (one,) = made("meld", tmp_path, part)
        assert one.user.audio == tmp_path / folder / "dia0_utt0.wav"
        assert one.user.text == f"Hi {part}"
    (tmp_path / "dev_splits_complete" / "dia0_utt0.wav").unlink()
    with pytest.raises(AssertionError):
        made("meld", tmp_path, "dev")
    write_noise(tmp_path / "again" / "dia0_utt0.WAV")
    write_noise(tmp_path / "more" / "dia0_utt0.wav")
    arguments = ["meld", str(tmp_path), "--part", "dev", "--out", str(tmp_path / "x.list")]
    assert make_raw_from_public.main(arguments) == 2
    assert "one name twice" in capsys.readouterr().err
