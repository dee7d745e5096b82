"""Claims about parity: published tensors are matched, differences are told, other files read."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from osum_echat import audio
from osum_echat.token2wav.voice import prompt_mel, speaker_features
from tests.parity.__main__ import compared, main
from tests.parity.rows import close, exact, near, not_compared, table
from tests.parity.token2wav import rows

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_cut_model_is_matched():
    found = compared(GOLDENS / "model")
    assert not [row for row in found if row.status == "falls short"], table(found)
    names = " ".join(row.name for row in found if row.status == "ok")
    for part in ("short_feat", "batch_mixed_proj_out", "audio_bf16 short_proj_out",
                 "s2t_chat_think[0] last_hidden", "speech2text_token_history[1] targets",
                 "text2token_streaming[1] speech_logits_cols", "generate s2s_think_short ids",
                 "generate multiturn_2 ids", "processors ngram", "processors age_tag"):  # fmt: skip
        assert part in names


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The audio part of the cut fixture, with one number of the adapter's output changed."""
    for name in ("model.pt", "model.yaml", "llm_config.json", "short.wav", "token_ids.json"):
        shutil.copyfile(GOLDENS / "model" / name, tmp_path / name)
    arrays = dict(np.load(GOLDENS / "model" / "audio.npz"))
    arrays["short_proj_out"][3, 5] += 2e-4
    np.savez(tmp_path / "audio.npz", **{key: arrays[key] for key in arrays if "short" in key})
    return tmp_path


def test_a_damaged_number_is_found(damaged: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(damaged)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "falls short" in line]
    assert len(lines) == 2 and lines[0].startswith("audio short_proj_out  ")
    assert re.search(r"2\.0\de-04 +1e-04  falls short", lines[0]) and "1 falls short" in lines[1]


def test_rows_compare_by_value_by_place_and_by_rms():
    assert close("a", torch.ones(2), np.ones(2), 0.1).status == "ok"
    assert close("a", torch.ones(2), np.array([1.0, 1.2]), 0.1).difference == pytest.approx(0.2)
    assert exact("a", [1, 2, 3], [1, 5, 6]).difference == 2
    assert near("a", [1.0, 1.0], [1.0, 1.02], 0.02).status == "ok"
    for compare in (close, near):
        assert compare("a", [1.0], [1.0, 2.0], 0.1).status == "falls short"
        assert compare("a", [np.nan], [1.0], 0.1).status == "falls short"
    assert exact("a", [1], [1, 2]).status == "falls short"
    assert "not compared: decided otherwise" in str(not_compared("loss", "decided otherwise"))


def test_flow_and_vocoder_match_the_published_ones():
    found = rows(GOLDENS / "token2wav")
    assert not [row for row in found if row.status == "falls short"]
    compared = {row.name for row in found if row.status == "ok"}
    wanted = {"flow_tok40.mel", "flow_tok1.mel", "flow_train.loss", "flow_train.grad_norm",
              "estimator_padded.out", "hift_one.wav", "hift weights, generator. prefix"}
    assert wanted <= compared


def test_what_a_recording_becomes_is_as_published():
    with np.load(GOLDENS / "token2wav_frontend.npz") as archive:
        heard = {key: torch.from_numpy(archive[key]) for key in archive.files}
    for name, ours, limit in (
        ("prompt_mel", prompt_mel(heard["wav22050"])[0], 1e-5),
        ("speaker_features", speaker_features(heard["wav16000"])[0], 5e-4),
        ("log_mel_128", audio.log_mel(heard["wav16000"], 128), 1e-5),
    ):
        assert (ours[::4] - heard[name]).abs().max() <= limit, name
