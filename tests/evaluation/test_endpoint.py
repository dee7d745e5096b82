"""Claims about asking a chat endpoint: what is tried again, what is not, and what never leaks."""

import pytest

from osum_echat.errors import InputError
from osum_echat.evaluation.endpoint import Endpoint, EndpointError
from tests.evaluation.judge_server import scores, serving

MESSAGES = [{"role": "user", "content": "hello"}]


def endpoint(url: str, pauses: list[float] | None = None, tries: int = 4) -> Endpoint:
    kept: list[float] = [] if pauses is None else pauses
    return Endpoint(url, "secret-key", timeout_s=0.3, tries=tries, sleep=kept.append)


def ask(url: str, pauses: list[float] | None = None, tries: int = 4):
    return endpoint(url, pauses, tries).ask("judge-x", MESSAGES, 0.5, 2, 7)


def test_the_request_holds_all_that_was_set_and_the_key_goes_in_the_header():
    with serving() as server:
        answer = ask(server.url)
    assert server.requests == [
        {"model": "judge-x", "messages": MESSAGES, "temperature": 0.5, "n": 2, "seed": 7}
    ]
    assert server.headers[0]["authorization"] == "Bearer secret-key"
    assert answer.texts == (scores(), scores()) and answer.tries == 1
    assert (answer.prompt_tokens, answer.completion_tokens) == (100, 20)


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "late", "not json"])
def test_a_passing_fault_is_tried_again_after_a_pause(fault):
    pauses: list[float] = []
    with serving(lambda body: [fault, fault, scores()]) as server:
        answer = ask(server.url, pauses)
    assert answer.tries == 3 and len(server.requests) == 3
    assert len(pauses) == 2 and 0.7 < pauses[0] < 1.3 < pauses[1]


def test_a_fault_that_stays_is_told_after_the_last_try():
    with serving(lambda body: [500]) as server, pytest.raises(
        EndpointError, match=r"no answer in 4 tries; last: HTTP 500"
    ):
        ask(server.url)
    assert len(server.requests) == 4


def test_a_server_that_is_not_there_is_a_fault_too():
    with serving() as server:
        url = server.url
    with pytest.raises(EndpointError, match="no answer in 2 tries"):
        ask(url, tries=2)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_the_user_must_put_right_is_not_tried_again(status):
    with serving(lambda body: [status]) as server, pytest.raises(InputError) as caught:
        ask(server.url)
    assert len(server.requests) == 1
    assert f"HTTP {status}" in str(caught.value) and "--judge-model" in str(caught.value)
    assert "secret-key" not in str(caught.value)


def test_a_redirect_is_not_followed_with_the_key():
    with serving(lambda body: [302]) as server, pytest.raises(InputError, match="HTTP 302"):
        ask(server.url)
    assert len(server.requests) == 1


def test_the_key_is_in_no_picture_of_the_endpoint():
    assert "secret-key" not in repr(endpoint("http://127.0.0.1:1/v1"))


def test_an_address_that_is_none_is_told():
    with pytest.raises(InputError, match=r"need http\(s\)://host"):
        Endpoint("127.0.0.1:8000/v1")


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        Endpoint.from_environment(1.0, 1)
