"""Claims about the chat judge: every item scored or listed, nothing asked twice, nothing made 0."""

import json

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.endpoint import Endpoint
from osum_echat.evaluation.judge import ChatJudge, ChatSettings
from osum_echat.evaluation.rubric import Exhibit, Rubric
from osum_echat.records import Labels
from tests.evaluation.judge_server import NAMES, scores, serving

RUBRIC = Rubric.load()
BROKEN = "I would say 80 out of 100."


def exhibits(count: int = 4) -> list[Exhibit]:
    return [Exhibit(f"item-{number}", "emotion", f"question {number}", Labels(emotion="SAD"),
                    f"reply {number}", "SAD") for number in range(count)]  # fmt: skip


def judge(url: str, **settings) -> ChatJudge:
    endpoint = Endpoint(url, timeout_s=0.3, tries=3, sleep=lambda seconds: None)
    return ChatJudge(endpoint, ChatSettings("judge-x", **{"workers": 3, **settings}), RUBRIC)


def number_of(body: dict) -> int:
    return int(body["messages"][1]["content"].partition("question ")[2].partition("<")[0])


def test_every_item_is_scored_once_and_tokens_and_cost_are_summed(tmp_path):
    with serving(lambda body: [scores(10 * number_of(body))]) as server:
        judged = judge(server.url, prices=(2.0, 10.0))(exhibits(), tmp_path)
    assert [one.overall for one in judged.verdicts.values()] == [0, 10, 20, 30]
    assert not judged.failed and len(server.requests) == 4
    bill = judged.bill
    assert (bill.calls, bill.prompt_tokens, bill.completion_tokens) == (4, 400, 40)
    assert bill.cost == pytest.approx((400 * 2 + 40 * 10) / 1e6)


def test_a_restart_asks_for_nothing_again_and_gives_the_same(tmp_path):
    with serving() as server:
        first = judge(server.url)(exhibits(2), tmp_path)
        assert len(server.requests) == 2
        again = judge(server.url)(exhibits(4), tmp_path)
        assert len(server.requests) == 4
        assert judge(server.url)(exhibits(4), tmp_path) == again
        assert len(server.requests) == 4
    assert first.verdicts["item-1"] == again.verdicts["item-1"]


def test_a_line_cut_by_a_kill_is_asked_for_again_and_no_other(tmp_path):
    with serving() as server:
        whole = judge(server.url)(exhibits(), tmp_path)
        path = tmp_path / "judgements.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        assert judge(server.url)(exhibits(), tmp_path) == whole
        assert len(server.requests) == 5


def test_what_does_not_parse_is_counted_asked_again_with_another_seed_and_never_0(tmp_path):
    with serving(lambda body: [BROKEN, scores(60)]) as server:
        judged = judge(server.url)(exhibits(1), tmp_path)
    assert [one["seed"] for one in server.requests] == [0, 1]
    assert judged.verdicts["item-0"].overall == 60 and judged.bill.unparsable == 1
    kept = [json.loads(line) for line in (tmp_path / "judgements.jsonl").read_text().splitlines()]
    assert [one["answers"] for one in kept] == [[BROKEN], [scores(60)]]


def test_an_item_that_never_parses_is_failed_and_not_asked_for_ever(tmp_path):
    with serving(lambda body: [BROKEN]) as server:
        for _ in range(2):
            judged = judge(server.url)(exhibits(1), tmp_path)
            assert judged.verdicts == {} and "none of 3 answers" in judged.failed["item-0"]
        assert len(server.requests) == 3


def test_faults_of_the_network_fail_their_item_only_and_a_restart_mends_it(tmp_path):
    faults = {0: [500], 1: ["drop"], 2: ["late", "late", scores(50)], 3: [429, scores(40)]}
    with serving(lambda body: faults[number_of(body)]) as server:
        judged = judge(server.url)(exhibits(), tmp_path)
        assert set(judged.failed) == {"item-0", "item-1"}
        assert {key: one.overall for key, one in judged.verdicts.items()} == {
            "item-2": 50, "item-3": 40,
        }  # fmt: skip
        before = len(server.requests)
        server.plan = lambda body: [scores(90)]
        judged = judge(server.url)(exhibits(), tmp_path)
        assert len(server.requests) == before + 2
    assert not judged.failed and judged.verdicts["item-0"].overall == 90


def test_a_wrong_key_stops_everything_at_once(tmp_path):
    with serving(lambda body: [401]) as server, pytest.raises(InputError, match="HTTP 401"):
        judge(server.url, workers=1)(exhibits(20), tmp_path)
    assert len(server.requests) < 20


def test_several_answers_are_averaged_and_missing_ones_asked_for(tmp_path):
    with serving(lambda body: [[scores(20), BROKEN, scores(40)], [scores(90)]]) as server:
        judged = judge(server.url, n=3)(exhibits(1), tmp_path)
    assert [one["n"] for one in server.requests] == [3, 1]
    assert judged.verdicts["item-0"].overall == 50 and judged.bill.unparsable == 1


def test_equal_questions_are_asked_once(tmp_path):
    twins = [Exhibit(key, "age", "same", Labels(), "same", None) for key in ("a", "b")]
    with serving() as server:
        judged = judge(server.url)(twins, tmp_path)
    assert len(server.requests) == 1 and set(judged.verdicts) == {"a", "b"}


def test_another_model_seed_or_temperature_is_another_question(tmp_path):
    with serving() as server:
        for settings in ({}, {"seed": 1}, {"temperature": 0.5}):
            judge(server.url, **settings)(exhibits(1), tmp_path)
        assert len(server.requests) == 3


def test_a_dimension_left_undecided_is_left_out_of_the_mean(tmp_path):
    given = dict.fromkeys(NAMES, 50) | {"delivery": None, "empathy": 90}
    with serving(lambda body: [json.dumps({"scores": given})]) as server:
        judged = judge(server.url)(exhibits(1), tmp_path)
    assert judged.verdicts["item-0"].overall == 60


def test_settings_that_ask_for_nothing_are_refused():
    with pytest.raises(InputError, match="give 1 or more"):
        ChatSettings("judge-x", n=0)
