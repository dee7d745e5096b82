"""Claims about parity: the cut fixture is matched, and a difference is found and told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.__main__ import kind_of, main
from tests.parity.model import rows
from tests.parity.rows import Row, close, exact, near, not_compared, summary, table

GOLDEN = Path(__file__).parents[1] / "goldens" / "model"


def test_the_cut_fixture_is_matched():
    found = rows(GOLDEN)
    short = [row for row in found if row.status == "falls short"]
    assert not short, table(short)
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
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    arrays = dict(np.load(GOLDEN / "audio.npz"))
    arrays["short_proj_out"][3, 5] += 2e-4
    np.savez(tmp_path / "audio.npz", **{key: arrays[key] for key in arrays if "short" in key})
    return tmp_path


def test_a_damaged_number_is_found(damaged, capsys):
    assert main([str(damaged)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "falls short" in line]
    assert len(lines) == 2 and lines[0].startswith("audio short_proj_out  ")
    assert "1 falls short" in lines[1]


def test_the_rows_can_be_had_as_json(damaged, capsys):
    main([str(damaged), "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert whole["kind"] == "model" and not whole["ok"]
    (row,) = [row for row in whole["rows"] if row["status"] == "falls short"]
    assert row["limit"] == 1e-4 and row["difference"] == pytest.approx(2e-4, rel=0.1)


def test_a_directory_without_a_fixture_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "neither a model fixture" in capsys.readouterr().err
    assert main([str(tmp_path / "gone")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_a_file_that_is_missing_is_named(damaged, capsys):
    (damaged / "model.yaml").unlink()
    assert main([str(damaged)]) == 2
    assert "model.yaml" in capsys.readouterr().err


def test_the_kind_is_seen_by_the_files(tmp_path):
    assert kind_of(GOLDEN) == "model"
    (tmp_path / "flow.pt").touch()
    assert kind_of(tmp_path) == "token2wav"


def test_rows_compare_by_value_by_place_and_by_rms():
    assert close("a", torch.ones(2), np.ones(2), 0.1).status == "ok"
    assert close("a", torch.ones(2), np.array([1.0, 1.2]), 0.1).difference == pytest.approx(0.2)
    assert exact("a", [1, 2, 3], [1, 5, 6]).difference == 2
    assert near("a", [1.0, 1.0], [1.0, 1.02], 0.02).status == "ok"
    for compare in (close, near):
        assert compare("a", [1.0], [1.0, 2.0], 0.1).status == "falls short"
        assert compare("a", [np.nan], [1.0], 0.1).status == "falls short"
    assert exact("a", [1], [1, 2]).status == "falls short"
    assert exact("a", [1], [1, 2]).to_json()["difference"] is None


def test_the_table_says_why_a_row_is_not_compared():
    found = [not_compared("loss", "decided otherwise"), Row("x", 0.0, 0.0)]
    assert "not compared: decided otherwise" in table(found)
    assert summary(found) == "1 ok, 0 falls short, 1 not compared"
