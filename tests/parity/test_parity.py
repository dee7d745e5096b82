"""Claims about parity: published tensors are matched, differences are told, other files read."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from osum_echat.token2wav.flow import Flow, FlowSettings
from tests.parity import token2wav
from tests.parity.__main__ import compared, main
from tests.parity.rows import close, exact, near, not_compared, table

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


def test_what_cannot_be_read_is_told_in_one_line(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (damaged / "model.yaml").unlink()
    (tmp_path / "empty").mkdir()
    for place, said in (("gone", "no such directory"), ("empty", "neither a model fixture"),
                        (".", "model.yaml")):  # fmt: skip
        assert main([str(tmp_path / place)]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1


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


def test_a_fixture_of_other_sizes_is_read_by_its_config(tmp_path: Path):
    """Its speaker vector is not 192 wide, its encoder and estimator are of other sizes."""
    config = json.loads((GOLDENS / "token2wav" / "config.json").read_text(encoding="utf-8"))
    config["flow"]["encoder"] |= {"linear_units": 40, "num_blocks": 1}
    config["flow"]["estimator"] |= {"channels": [16, 16], "num_mid_blocks": 1}
    config["flow"]["length_regulator"]["sampling_ratios"] = [1, 1]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = token2wav.settings_of(FlowSettings, token2wav.FLOW, config | {"spk_embed_dim": 48})
    torch.manual_seed(1)
    flow = Flow(token2wav.replace(settings, speaker_width=48)).eval()
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    arrays = {"token": torch.tensor([[3, 4]]), "prompt_token": torch.zeros(1, 0).long(),
              "prompt_feat": torch.zeros(1, 0, 80), "embedding": torch.randn(1, 48),
              "z": torch.randn(1, 80, 6)}  # fmt: skip
    told = (arrays[name] for name in ("prompt_token", "prompt_feat", "embedding"))
    voice = token2wav.VoicePrompt(*told)
    arrays["mel"] = token2wav.mel_of(flow, arrays["token"], voice, arrays["z"])
    arrays["spk"] = flow.speaker(arrays["embedding"]).detach()
    np.savez(tmp_path / "flow_a.npz", **{key: value.numpy() for key, value in arrays.items()})
    assert [row.name for row in compared(tmp_path) if row.status == "ok"] == [
        "flow_a.mel", "flow_a.spk"]  # fmt: skip
