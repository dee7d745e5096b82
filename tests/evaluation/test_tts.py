"""Claims about synthesis: lists read, files where the official scripts look, errors counted."""

from types import SimpleNamespace

import pytest
import torch

from osum_echat.evaluation import tts
from tests.evaluation.spoken import Spoken, scored, write_wav

META = "a-1|prompt words|prompts/p.wav|hello there\nb-2|提示|prompts/p.wav|今天 天气很好\n"


def write_meta(folder, text=META):
    write_wav(folder / "prompts" / "p.wav")
    (folder / "meta.lst").write_text(text)
    return folder / "meta.lst"


class Reader(Spoken):
    """Is heard to say `words of` and the name of the file: two words too many for nothing."""

    def reply(self, source, **options):
        reply = super().reply(source, **options)
        if options["task"] == "asr":
            heard = {"a-1": "hello bear", "b-2": "今天天气很好"}[source.stem]
            object.__setattr__(reply, "heard", heard)
        return reply


def run(data, out):
    return scored("tts", data, out, Reader(), "--no-prompt")


def test_a_meta_list_is_read_with_prompts_beside_it(tmp_path):
    first, second = tts.read(write_meta(tmp_path))[0]
    assert (first.key, first.text, first.prompt) == (
        "a-1", "hello there", tmp_path / "prompts/p.wav")  # fmt: skip
    assert second.text == "今天 天气很好"


def test_files_lie_as_the_official_scripts_expect_and_errors_are_by_language(tmp_path, monkeypatch):
    monkeypatch.setattr(tts, "_cosine", lambda model, wav, prompt: {"a-1": 0.8}.get(wav.stem, 0.6))
    data, out = write_meta(tmp_path / "d"), tmp_path / "out"
    found = run(data, out)
    assert {path.name for path in (tmp_path / "out/wavs").iterdir()} == {"a-1.wav", "b-2.wav"}
    measures = found["measures"]
    assert measures["WER english"]["value"] == 50 and measures["CER chinese"]["value"] == 0
    assert measures["speaker similarity"]["value"] == pytest.approx(0.7)
    words = (tmp_path / "out" / "report.md").read_text()
    assert "| this model | 0.00" in words and "| OSUM-EChat (paper) | 3.00 | 3.99 |" in words
    before = (out / "heard.jsonl").read_bytes()     # kept by judge
    run(data, out)
    assert (out / "heard.jsonl").read_bytes() == before and b"own-model:a-1" in before


def test_likeness_is_the_cosine_of_speaker_vectors(tmp_path, monkeypatch):
    vectors = iter([torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])])
    monkeypatch.setattr(tts, "_encoder", lambda folder: lambda samples: next(vectors))
    found = run(write_meta(tmp_path / "d", META.splitlines()[0]), tmp_path / "out")
    assert found["measures"]["speaker similarity"]["value"] == pytest.approx(0.7071)


@pytest.mark.parametrize("line", ["a|b|c", "|p|p.wav|text", "a|p|p.wav|"])
def test_a_line_that_is_none_costs_itself_and_is_told(tmp_path, line):
    found, lost = tts.read(write_meta(tmp_path, f"{line}\na|p|p.wav|text\n"))
    assert [one.key for one in found] == ["a"]
    assert "need name|prompt text" in lost[f"{tmp_path}/meta.lst line 1"]


def test_words_that_have_changed_are_spoken_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(tts, "_cosine", lambda *_: 0.5)
    data, out = write_meta(tmp_path / "d"), tmp_path / "out"
    run(data, out)
    data.write_text(META.replace("hello there", "hello bear"))
    assert run(data, out)["measures"]["WER english"]["value"] == 0
    told = (out / "predictions.jsonl").read_text()
    assert (told.count('"key": "a-1"'), told.count('"key": "b-2"')) == (2, 1)


def test_a_model_that_cannot_tell_voices_apart_is_scored_without_likeness(tmp_path):
    assistant = Reader(voice=SimpleNamespace(source=tmp_path))
    data = write_meta(tmp_path / "d")
    found = scored("tts", data, tmp_path / "own", assistant, "--no-prompt")
    assert found["measures"]["WER english"]["value"] == 50
    assert "speaker similarity" not in found["measures"]
    failed = scored("tts", data, tmp_path / "out", assistant)["failed"]
    assert list(failed) == ["a-1", "b-2"] and "take --no-prompt" in failed["a-1"]
