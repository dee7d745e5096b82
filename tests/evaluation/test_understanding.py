"""Claims about understanding: what is heard in every form of list, by set, and under noise."""

import json

import numpy as np
import pytest

from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.evaluation.start import run_suite
from osum_echat.evaluation.understanding import robustness, with_noise
from osum_echat.paths import FAKE_DATA
from osum_echat.records import Labels, Turn, Utterance
from tests.evaluation.spoken import Spoken, arguments, model, write_wav

TAG = "<TRANSCRIBE> <AGE> <EMOTION>"


class Listener(Spoken):
    """Hears the words rightly, and always a sad child."""

    def reply(self, source, **options):
        reply = super().reply(source, **options)
        words = source.user.reply_text.partition("<")[0]
        object.__setattr__(reply, "text", f"{words}<CHILD><SAD>")
        object.__setattr__(reply, "heard", words)
        object.__setattr__(reply, "labels", Labels(age="CHILD", emotion="SAD"))
        return reply


def write_list(folder, name, labels):
    rows = []
    for number, (age, emotion) in enumerate(labels):
        write_wav(folder / f"{name}{number}.wav")
        rows.append({"key": f"{name}{number}", "wav": f"{name}{number}.wav", "task": TAG,
                     "txt": f"hello number {number}<{age}><{emotion}>",
                     "extra": {"age": age, "gender": "MALE", "q_emotion": emotion}})  # fmt: skip
    (folder / f"{name}.list").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(data, out, *more):
    run_suite("understanding", arguments("understanding", data, out, *more), model(Listener()))
    return json.loads((out / "scores.json").read_text())["measures"]


def test_words_and_labels_are_scored_by_set_with_other_spellings_as_one(tmp_path):
    write_list(tmp_path, "real", [("CHILD", "SAD"), ("OLD", "SAD")])
    write_list(tmp_path, "synthetic", [("child", "<SAD>"), ("CHILD", "HAPPY"), ("CHILD", "SAD")])
    (tmp_path / "data.yaml").write_text(
        "people: {path: real.list}\nsynthetic: {path: synthetic.list}\n"
    )
    found = run(tmp_path / "data.yaml", tmp_path / "out")
    assert found["people/WER english"]["value"] == 0
    assert found["people/age"]["value"] == 50 and found["synthetic/age"]["value"] == 100
    assert found["synthetic/emotion"]["value"] == pytest.approx(66.67, abs=0.01)
    assert found["synthetic/emotion macro-F1"]["value"] == pytest.approx(40.0, abs=0.1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "people: emotion" in page and page.count("<svg") == 5
    assert "data:audio/wav;base64," in page


def test_noise_is_a_set_of_its_own_and_the_worst_cell_is_named(tmp_path):
    write_list(tmp_path, "a", [("CHILD", "SAD")] * 3 + [("OLD", "HAPPY")] * 3)
    found = run(tmp_path / "a.list", tmp_path / "out", "--noise", "10")
    assert found["a/age"]["count"] == found["a, 10 dB/age"]["count"] == 6
    words = (tmp_path / "out" / "report.md").read_text()
    assert "Worst of 4 cells with 3 or more items: OLD, MALE, HAPPY, 10 dB: 0.0 %" in words


@pytest.mark.parametrize("form", ["raw/data.list", "shard", "combine"])
def test_every_form_of_list_is_read(tmp_path, form):
    found = run(FAKE_DATA / form, tmp_path / "out", "--task", "<TRANSCRIBE>", "--limit", "4")
    assert any("/" in name or "WER" in name for name in found)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 4


def test_noise_has_the_power_that_was_asked_for_and_is_the_same_every_time(tmp_path):
    plain = Utterance("u", TAG, Turn(audio=write_wav(tmp_path / "u.wav")))
    samples = audio.load(plain.user.audio).numpy()
    noisy = [audio.load(with_noise(plain, 10.0, 3).user.audio).numpy() for _ in range(2)]
    assert np.array_equal(*noisy)
    ratio = np.square(samples).mean() / np.square(noisy[0] - samples).mean()
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.3)


def test_voices_that_are_not_known_make_no_table_of_robustness():
    one = {"reference_labels": {"age": None, "gender": "MALE", "emotion": "SAD"}, "noise": "clean"}
    assert robustness([one] * 5) == []


def test_an_unknown_task_is_told_before_anything_runs(tmp_path):
    write_list(tmp_path, "a", [("CHILD", "SAD")])
    with pytest.raises(InputError, match="'<NOTHING>'"):
        run(tmp_path / "a.list", tmp_path / "out", "--task", "<NOTHING>")
