"""Claims about judges: every item scored or listed, nothing asked twice, nothing made 0."""

import json
from types import SimpleNamespace

import pytest

from osum_echat.errors import ConfigError, InputError
from osum_echat.evaluation.judge import ChatJudge, Exhibit, Rubric, RulesJudge
from osum_echat.records import Labels
from tests.evaluation.judge_server import NAMES, scores, serving

RUBRIC = Rubric.load()
BROKEN = "I would say 80 out of 100."


def exhibits(count: int = 4) -> list[Exhibit]:
    return [Exhibit(f"item-{number}", "emotion", f"question {number}", Labels(emotion="SAD"),
                    f"reply {number}", "SAD") for number in range(count)]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("osum_echat.evaluation.endpoint.WAIT_S", 0.0)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")


def judge(url: str, **options) -> ChatJudge:
    """A chat judge of these --judge-... options."""
    given = {"model": "judge-x", "temperature": 0.0, "n": 1, "seed": 0, "rounds": 3, "workers": 3,
             "timeout": 0.3, "tries": 3, "prices": None} | options  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        own = SimpleNamespace(**{f"judge_{name}": value for name, value in given.items()})
        return ChatJudge(own, RUBRIC)


def number_of(body: dict) -> int:
    return int(body["messages"][1]["content"].partition("question ")[2].partition("<")[0])


def test_every_item_is_scored_once_over_all_starts_and_tokens_and_cost_are_summed(tmp_path):
    with serving(lambda body: [scores(10 * number_of(body))]) as server:
        asked = judge(server.url, prices=(2.0, 10.0))
        first, judged = asked(exhibits(2), tmp_path), asked(exhibits(), tmp_path)
        assert judge(server.url, prices=(2.0, 10.0))(exhibits(), tmp_path) == judged
    assert [one.overall for one in judged.verdicts.values()] == [0, 10, 20, 30]
    assert [one.overall for one in first.verdicts.values()] == [0, 10]
    assert not judged.failed and len(server.requests) == 4
    bill = judged.bill
    assert bill == {"calls": 4, "unparsable": 0, "prompt_tokens": 400, "completion_tokens": 40,
                    "cost": pytest.approx((400 * 2 + 40 * 10) / 1e6)}  # fmt: skip


def test_what_does_not_parse_is_counted_asked_again_with_another_seed_and_never_0(tmp_path):
    half = f"\ud83d {scores(60)}"       # half a character does no harm
    with serving(lambda body: [BROKEN, half]) as server:
        judged = judge(server.url)(exhibits(1), tmp_path / "read")
        assert [one["seed"] for one in server.requests] == [0, 1]
        assert judged.verdicts["item-0"].overall == 60 and judged.bill["unparsable"] == 1
        kept = (tmp_path / "read" / "judgements.jsonl").read_text().splitlines()
        answers = [json.loads(line)["answers"] for line in kept]
        assert answers == [[BROKEN], [half.replace("\ud83d", "?")]]
        server.plan, before = lambda body: [BROKEN], len(server.requests)
        for _ in range(2):                      # an item that never parses is not asked for ever
            judged = judge(server.url)(exhibits(1), tmp_path / "lost")
            assert judged.verdicts == {} and "none of 3 answers" in judged.failed["item-0"]
        assert len(server.requests) == before + 3


def test_several_answers_are_averaged_and_the_request_holds_all_that_was_set(tmp_path):
    with serving(lambda body: [[scores(20), BROKEN, scores(40)], [scores(90)]]) as server:
        asked = judge(server.url, n=3, seed=7, temperature=0.5)
        judged = asked(exhibits(1), tmp_path)
    messages = RUBRIC.messages(exhibits(1)[0])
    assert server.requests == [
        {"model": "judge-x", "messages": messages, "temperature": 0.5, "n": n, "seed": seed}
        for n, seed in ((3, 7), (1, 8))
    ]
    assert judged.verdicts["item-0"].overall == 50 and judged.bill["unparsable"] == 1
    assert server.headers[0]["authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(asked.settings())


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "late", "not json"])
def test_a_fault_that_stays_fails_its_item_only_and_a_restart_mends_it(tmp_path, fault):
    plans = ([fault, fault, scores(70)], [fault])
    with serving(lambda body: plans[number_of(body)]) as server:
        judged = judge(server.url)(exhibits(2), tmp_path)
        assert judged.verdicts["item-0"].overall == 70 and len(server.requests) == 6
        assert list(judged.failed) == ["item-1"]
        assert "no answer in 3 tries" in judged.failed["item-1"]
        server.plan = lambda body: [scores(90)]
        judged = judge(server.url)(exhibits(2), tmp_path)
        assert [one.overall for one in judged.verdicts.values()] == [70, 90]
        assert len(server.requests) == 7


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404])
def test_what_the_user_must_put_right_is_not_tried_again_and_tells_no_key(tmp_path, status):
    with serving(lambda body: [status]) as server, pytest.raises(InputError) as caught:
        judge(server.url, workers=1)(exhibits(1), tmp_path)
    assert len(server.requests) == 1
    assert f"HTTP {status}" in str(caught.value) and "OPENAI_API_KEY" in str(caught.value)
    assert "secret-key" not in str(caught.value)


def test_openais_own_address_needs_a_key_and_a_rubric_its_form(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        judge("https://api.openai.com/v1")
    (tmp_path / "r.yaml").write_text("version: x\n")
    with pytest.raises(ConfigError, match="its form: empathy-v1"):
        Rubric.load(tmp_path / "r.yaml")


HALF = json.dumps({"scores": dict.fromkeys(NAMES, 50) | {"delivery": None, "empathy": 90}})
BAD = [{"relevance": 101}, {"relevance": -1}, {"relevance": "80"}, {"relevance": True},
       dict.fromkeys(NAMES)]  # fmt: skip


@pytest.mark.parametrize("answer, overall", [
    (scores(70), 70), (f"```json\n{scores(70)}\n```", 70),
    (f"Let me think {{not this}}. {scores(70)} That is all.", 70),
    (f'{{"other": 1}} {scores(70)}', 70), (HALF, 60), ("", None), ("80", None),
    ('{"scores": {"relevance": 80}}', None), ("{" * 5000, None), (scores(100), 100),
    (scores(10).replace("10", "1" + "0" * 400), None),
    *((json.dumps({"scores": dict.fromkeys(NAMES, 70) | one}), None) for one in BAD),
])  # fmt: skip
def test_complete_scores_are_found_whatever_stands_around_them(answer, overall):
    verdict = RUBRIC.read(answer)
    assert (verdict and verdict.overall) == overall


JUDGE = RulesJudge()
KITE = "I lost my kite in the park."
CHILD = Labels(emotion="SAD", age="CHILD")
CHINESE = Exhibit("k", "event", "我今天咳嗽得厉害", Labels(age="OLD", event="COUGH"),
                  "爷爷，您咳嗽了，请多喝水，去看看医生吧。", None)  # fmt: skip


@pytest.mark.parametrize("reply, heard, dimension, expected", [
    (" ", "SAD", "empathy", 0), ("Kites fly away in a park.", "SAD", "relevance", 100),
    ("Bananas are yellow.", "SAD", "relevance", 50),
    ("Goodbye, little one.", "SAD", "perception", 100), ("Goodbye.", "SAD", "perception", 50),
    ("Goodbye, madam.", "SAD", "perception", 10), ("I am so sorry for you.", "SAD", "empathy", 100),
    ("The sky is blue.", "SAD", "empathy", 40), ("Congratulations!", "SAD", "empathy", 0),
    ("Oh no.", "SAD", "delivery", 100), ("Oh no.", "NEUTRAL", "delivery", 75),
    ("Oh no.", "HAPPY", "delivery", 20), ("Oh no.", None, "delivery", None),
    ("That is a pity, my friend.", "SAD", "naturalness", 100),
    ("<SAD> That is a pity, my friend.", "SAD", "naturalness", 60),
    ("Pity.", "SAD", "naturalness", 70), ("That is a pity, my friend", "SAD", "naturalness", 90),
    ("no no no no no no no no.", "SAD", "naturalness", pytest.approx(74.3, abs=0.1)),
])  # fmt: skip
def test_the_rules_score_as_they_say(reply, heard, dimension, expected):
    verdict = JUDGE.judge(Exhibit("k", "age", KITE, CHILD, reply, heard))
    known = [value for value in verdict.scores.values() if value is not None]
    assert verdict.scores[dimension] == expected
    assert verdict.overall == pytest.approx(sum(known) / len(known))


def test_chinese_is_asked_about_and_judged_in_chinese():
    asked = Exhibit("k", "multi", "我的风筝丢了", Labels(emotion="SAD"), "Oh no.", "SAD")
    text = "\n".join(one["content"] for one in RUBRIC.messages(asked))
    assert "回复" in text and "You judge" not in text
    found = JUDGE.judge(CHINESE).scores
    assert found["perception"] == 100 and found["relevance"] > 50
