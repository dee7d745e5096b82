"""Claims about every run: a kill costs one item at most, and the scores are those of one run."""

import json
from types import SimpleNamespace

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.echat_eval import TIMED
from osum_echat.evaluation.runner import ASKED_AT_ONCE, batches
from osum_echat.evaluation.start import run_suite
from osum_echat.records import Utterance
from tests.evaluation.spoken import Spoken, arguments, model, write_queries


def run(data, out, assistant, *more):
    return run_suite("echat_eval", arguments("echat_eval", data, out, *more), model(assistant))


def scores(out):
    raw = json.loads((out / "scores.json").read_text())
    return {name: raw[name] for name in ("measures", "details", "failed", "items")}


def lines(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


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


def test_half_a_batch_is_asked_again_in_the_same_company_and_its_first_half_is_kept(tmp_path):
    data = write_queries(tmp_path / "data", tuple(f"q{number}" for number in range(12)))
    whole, out = Spoken(), tmp_path / "out"
    run(data, tmp_path / "whole", whole)
    queries = [size for size in whole.batches if size > 1]
    assert queries == [12 - TIMED] * 2                      # label, natural
    run(data, out, Spoken())
    kept = lines(out)[:10]                                  # 8 timed ones, and 2 of a batch of 8
    (out / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    again = Spoken()
    run(data, out, again)
    assert [size for size in again.batches if size > 1] == queries
    assert lines(out)[:10] == kept and len(lines(out)) == 24
    assert scores(out) == scores(tmp_path / "whole")


def test_batches_hold_one_kind_and_depend_on_the_items_alone():
    items = [SimpleNamespace(key=str(number), sort="ab"[number % 2] if number else None)
             for number in range(40)]  # fmt: skip
    suite = SimpleNamespace(items=lambda: items, kind=lambda one: one.sort)
    made = batches(suite)
    assert sorted(int(one.key) for batch in made for one in batch) == list(range(40))
    assert all(len({one.sort for one in batch}) == 1 for batch in made)
    assert made[0] == items[:1] and max(map(len, made)) == ASKED_AT_ONCE


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
    with pytest.raises(InputError, match=f"another {other[0].strip('-')} .*choose another --out"):
        run(data, out, Spoken(), "--limit", "1", *other)
    run(data, out, Spoken(), "--limit", "1", *other, "--overwrite")


def test_a_query_that_cannot_be_used_harms_no_other_and_is_listed(tmp_path):
    data, out = write_queries(tmp_path / "data", ("q0", "bad", "q2")), tmp_path / "out"
    run(data, out, Spoken())
    found = scores(out)
    assert set(found["failed"]) == {"bad/label", "bad/natural"} and found["items"] == 6
    assert found["measures"]["label/all"]["count"] == 2
    assert "Items that failed" in (out / "report.html").read_text()


def test_what_failed_is_asked_again_by_the_next_runs_three_times_in_all(tmp_path):
    data, out = write_queries(tmp_path / "data", ("q0", "bad", "q2")), tmp_path / "out"
    for number, tries in enumerate((1, 2, 3, 3)):
        assistant = Spoken()
        run(data, out, assistant)
        asked = {one["source"].user.audio.stem for one in assistant.asked
                 if one["task"] == "s2s_think"}  # fmt: skip
        assert asked == ({"q0", "bad", "q2"}, {"bad"}, {"bad"}, set())[number]
        last = {one["key"]: one["tries"] for one in lines(out) if "error" in one}
        assert last == {"bad/label": tries, "bad/natural": tries}


def test_what_failed_for_a_reason_that_has_gone_is_mended_by_a_second_run(tmp_path):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, tmp_path / "whole", Spoken())
    hidden = (data.parent / "q1.wav").rename(tmp_path / "hidden.wav")
    run(data, out, Strict())
    assert set(scores(out)["failed"]) == {"q1/label", "q1/natural"}
    hidden.rename(data.parent / "q1.wav")
    run(data, out, Strict())
    assert scores(out) == scores(tmp_path / "whole") and scores(out)["failed"] == {}


class Strict(Spoken):
    """Hears only what is there."""

    def reply(self, source, **options):
        if isinstance(source, Utterance) and not source.user.audio.exists():
            raise InputError(f"{source.user.audio}: not there")
        return super().reply(source, **options)


def test_overwriting_forgets_what_was_heard_in_the_sounds_of_before(tmp_path):
    data, out = write_queries(tmp_path / "data"), tmp_path / "out"
    run(data, out, Spoken())
    assert (out / "reply_emotions.jsonl").exists() and (out / "neutral.json").exists()
    run(data, out, Spoken(), "--seed", "5", "--overwrite")
    run(data, tmp_path / "fresh", Spoken(), "--seed", "5")
    for name in ("reply_emotions.jsonl", "neutral.json"):
        assert (out / name).read_text() == (tmp_path / "fresh" / name).read_text()


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
