"""Claims about every run: a kill costs one item at most, and the scores are those of one run."""

import json

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.start import run_suite
from tests.evaluation.spoken import Spoken, arguments, model, write_queries


def run(data, out, assistant, *more):
    return run_suite("echat_eval", arguments("echat_eval", data, out, *more), model(assistant))


def scores(out):
    raw = json.loads((out / "scores.json").read_text())
    return {name: raw[name] for name in ("measures", "details", "failed", "items")}


def test_a_run_stopped_anywhere_and_started_again_gives_the_scores_of_one_run(tmp_path):
    data = write_queries(tmp_path / "data")
    run(data, tmp_path / "whole", Spoken())
    for stop in (1, 5):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(data, out, Spoken(stop_after=stop))
        with (out / "predictions.jsonl").open("a") as file:
            file.write('{"key": "q3/natural", "tex')       # a line that the kill cut short
        again = Spoken()
        run(data, out, again)
        queries = [one for one in again.asked if one["task"] == "s2s_think"]
        assert len(queries) == 8 - stop
        assert scores(out) == scores(tmp_path / "whole")


def test_a_second_run_asks_the_model_for_nothing_and_changes_nothing(tmp_path):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken())
    before, again = scores(out), Spoken()
    run(data, out, again)
    assert again.asked == [] and scores(out) == before


def test_a_larger_limit_adds_to_what_is_there(tmp_path):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken(), "--limit", "2")
    more = Spoken()
    run(data, out, more, "--limit", "3")
    assert len([one for one in more.asked if one["task"] == "s2s_think"]) == 2


@pytest.mark.parametrize("other", [["--seed", "1"], ["--greedy"]])
def test_predictions_of_other_settings_are_not_mixed(tmp_path, other):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken(), "--limit", "1")
    with pytest.raises(InputError, match=f"another {other[0].strip('-')}; choose another --out"):
        run(data, out, Spoken(), "--limit", "1", *other)
    run(data, out, Spoken(), "--limit", "1", *other, "--overwrite")


def test_a_query_that_cannot_be_used_harms_no_other_and_is_listed(tmp_path):
    data, out = write_queries(tmp_path / "data", ("q0", "bad", "q2")), tmp_path / "out"
    run(data, out, Spoken())
    found = scores(out)
    assert set(found["failed"]) == {"bad/label", "bad/natural"} and found["items"] == 6
    assert found["measures"]["label/all"]["count"] == 2
    assert "Items that failed" in (out / "report.html").read_text()


def test_the_same_item_gets_the_same_seed_whatever_came_before(tmp_path):
    data = write_queries(tmp_path / "data")
    seeds = []
    for limit in ("1", "4"):
        assistant = Spoken()
        run(data, tmp_path / limit, assistant, "--limit", limit)
        seeds.append({str(one["source"]): one["seed"] for one in assistant.asked})
    assert seeds[0].items() <= seeds[1].items()


def test_settings_and_versions_are_in_the_scores_and_no_key_is(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken(), "--limit", "1")
    raw = json.loads((out / "scores.json").read_text())
    assert raw["settings"]["seed"] == 0 and raw["versions"]["torch"]
    assert not any("secret-key" in path.read_text(errors="ignore") for path in out.glob("*.*"))


def test_keys_that_stand_twice_are_refused(tmp_path):
    data = write_queries(tmp_path / "data", ("q0", "q0"))
    with pytest.raises(InputError, match="stand there twice"):
        run(data, tmp_path / "out", Spoken())


def test_a_limit_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="--limit 0"):
        run(write_queries(tmp_path / "data"), tmp_path / "out", Spoken(), "--limit", "0")
