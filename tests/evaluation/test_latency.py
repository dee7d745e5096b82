"""Claims about latency: parts add up to the first sound, cold and warm stay apart."""

import pytest

from osum_echat.evaluation.latency import PARTS, parts_of
from tests.evaluation.spoken import Spoken, scored, write_queries

TURN = {"decode_s": 0.01, "features_s": 0.02, "encode_s": 0.2, "prefill_s": 0.1,
        "first_text_s": 0.4, "first_speech_token_s": 0.6, "first_audio_s": 1.0}  # fmt: skip


def test_the_parts_of_a_turn_add_up_to_its_first_sound():
    parts = parts_of(TURN)
    assert tuple(parts) == PARTS and sum(parts.values()) == pytest.approx(1.0)
    assert parts["encoder"] == pytest.approx(0.17) and parts["to first text"] == pytest.approx(0.1)


def test_cold_and_warm_turns_have_percentiles_and_a_picture(tmp_path):
    out, assistant = tmp_path / "out", Spoken()
    found = scored("latency", write_queries(tmp_path / "d"), out, assistant)
    assert found["measures"] == {}
    timings = found["timings"]
    assert timings["cold/first audio p50"]["count"] == 1
    assert timings["warm/first audio p90"]["count"] == 4
    assert timings["warm/peak memory p50"]["unit"] == "MB"
    assert len(assistant.asked) == 5
    assert "Up to the first sound" in (out / "report.html").read_text()


def test_a_run_that_goes_on_warms_up_before_it_times(tmp_path):
    data, out = write_queries(tmp_path / "d"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        scored("latency", data, out, Spoken(stop_after=3))
    again = Spoken()
    scored("latency", data, out, again)
    assert len(again.asked) == 2 + 1
