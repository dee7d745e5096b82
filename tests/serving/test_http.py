"""Claims about the live server's routes over HTTP: who may call, what they answer, what not."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from osum_echat import audio
from osum_echat.inference import reply
from osum_echat.serving import online
from osum_echat.serving.audio_formats import encode_file
from osum_echat.serving.online import Server
from tests.serving.canned import LABELS, WORDS, Canned, service

ASKED = {"messages": [{"role": "user", "content": "hi"}]}
WAV = base64.b64encode(encode_file(np.full(16_000, 0.1, np.float32), 16_000, "wav")).decode()
SOUND = {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}


@pytest.fixture
def client() -> Iterator[TestClient]:
    """Of a server of the canned assistant."""
    with TestClient(Server(service()).app()) as opened:
        yield opened


def test_who_may_come():
    server = Server(service(), sessions=1, key="right")
    with TestClient(server.app()) as client:
        evil = {"Authorization": "Bearer right", "Origin": "http://evil.example"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, evil):
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(
                "/v1/realtime", headers=headers
            ):
                pass
            assert client.get("/v1/models", headers=headers).status_code in (401, 403)
        good = {"Authorization": "Bearer right"}
        path, asked = "/v1/realtime/client_secrets", {"session": {"output_modalities": ["text"]}}
        secret = client.post(path, json=asked, headers=good).json()["value"]
        wrong = client.post(path, json={"session": {"output_modalities": ["x"]}}, headers=good)
        assert wrong.status_code == 400
        temporary = {"Authorization": f"Bearer {secret}"}
        again = client.post("/v1/realtime/client_secrets", json={}, headers=temporary)
        assert again.status_code == 401
        offered = ["realtime", f"openai-insecure-api-key.{secret}"]
        with client.websocket_connect("/v1/realtime", subprotocols=offered) as socket:
            assert socket.accepted_subprotocol == "realtime"
            created = json.loads(socket.receive_text())
            assert created["type"] == "session.created"
            assert created["session"]["output_modalities"] == ["text"]
            with client.websocket_connect("/v1/realtime", headers=good) as second:
                full = json.loads(second.receive_text())
                assert full["error"]["code"] == "session_limit_reached"
        limit = time.monotonic() + 2
        while server.open:
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert "osum_sessions_active 0" in client.get("/metrics").text
        assert client.get("/ready").json()["status"] == "ready"


def test_http_routes_speak_the_protocol(client: TestClient):
    clip = encode_file(np.zeros(16_000, np.float32), 16_000, "wav")
    said = client.post("/v1/audio/speech", json={"input": "hi", "response_format": "wav"})
    assert said.headers["content-type"] == "audio/wav" and said.content[:4] == b"RIFF"
    pcm = client.post("/v1/audio/speech", json={"input": "hi", "response_format": "pcm"})
    assert len(pcm.content) / 2 / 24_000 == pytest.approx(0.4, abs=0.001)
    lines = client.post("/v1/audio/speech", json={"input": "hi", "stream_format": "sse"}).text
    assert "speech.audio.delta" in lines and "speech.audio.done" in lines
    heard = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", clip)})
    assert heard.status_code == 200 and "text" in heard.json()
    sound = {"data": base64.b64encode(clip).decode(), "format": "wav"}
    asked = {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}
    chat = {"messages": [asked], "modalities": ["text", "audio"]}
    answer = client.post("/v1/chat/completions", json=chat).json()
    (used, message) = answer["usage"], answer["choices"][0]["message"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["total_tokens"]) == (7, 8, 15)
    assert message["audio"]["transcript"] == "".join(WORDS)
    assert message["x_osum"]["emotion"] == {"label": LABELS.emotion}
    again = [asked, {"role": "assistant", "audio": {"id": message["audio"]["id"]}},
             {"role": "user", "content": "and now?"}]  # fmt: skip
    odd = {"messages": again, "modalities": 1}      # no failure of the server
    assert client.post("/v1/chat/completions", json=odd).status_code == 200
    streamed = client.post("/v1/chat/completions", json={**chat, "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n") and '"transcript"' in streamed


@pytest.mark.parametrize(("path", "body", "status"), [
    ("audio/speech", {"input": ""}, 400), ("audio/speech", {"input": "x" * 5000}, 400),
    ("audio/speech", {"input": "x", "response_format": "tape"}, 400),
    ("audio/speech", {"input": "x", "response_format": ["mp3"]}, 400),
    ("chat/completions", {"messages": [{"role": "user", "content": [SOUND, SOUND]}]}, 400),
    ("chat/completions", {}, 400), ("chat/completions", {"messages": [{"role": "user"}]}, 400),
    ("chat/completions", {"messages": [{"role": "assistant", "audio": {"id": "no"}}]}, 400),
    ("nope", {}, 404), ("audio/speech", {"input": 1}, 400),
    ("chat/completions", ASKED | {"audio": ["wav"]}, 400),
    ("chat/completions", ASKED | {"stream": True, "stream_options": "x"}, 400),
    ("chat/completions", {"messages": [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}]}, 400),
    ("realtime/client_secrets", {"expires_after": [1]}, 400),
])  # fmt: skip
def test_bad_calls_get_the_error_object(client, path: str, body: dict[str, Any], status: int):
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.post(f"/v1/{path}", content=b"{").status_code in (400, 404)


def test_webm_is_heard_up_to_the_longest_clip():
    av = pytest.importorskip("av", reason="PyAV is installed apart")
    def webm(seconds: int) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", "webm") as container:
            stream = container.add_stream("libopus", rate=48_000, layout="mono")
            tone = np.sin(np.arange(48_000 * seconds) / 20)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            frame.sample_rate = 48_000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        return file.getvalue()

    assistant = Canned()
    with TestClient(Server(service(assistant)).app()) as client:
        def post(data: bytes) -> Any:
            return client.post("/v1/audio/transcriptions", files={"file": ("a.webm", data)})

        assert post(webm(2)).status_code == 200
        (heard, _), = assistant.asked
        assert audio.load(heard.user.audio).shape[0] == pytest.approx(32_000, abs=640)
        long, cut = post(webm(31)), post(webm(2)[:60])
        assert "over 30 s" in long.json()["error"]["message"] and long.status_code == 400
        assert "cannot be decoded" in cut.json()["error"]["message"] and cut.status_code == 400


def test_a_reply_that_fails_within_a_stream_is_told_in_it_and_before_by_its_status():
    asked = ASKED | {"stream": True}
    with TestClient(Server(service(Canned(error=RuntimeError("inside")))).app()) as client:
        lines = client.post("/v1/chat/completions", json=asked).text.strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"] == {
            "role": "assistant", "content": WORDS[0]}  # fmt: skip
        asked["messages"] = [{"role": "user", "content": "x" * 5000}]
        assert client.post("/v1/chat/completions", json=asked).status_code == 400


def test_bodies_and_counters_do_not_grow_without_end(monkeypatch, client: TestClient):
    monkeypatch.setattr(online, "MOST_UPLOAD_BYTES", 1000)
    pieces = (b"x" * 600 for _ in range(3))
    assert client.post("/v1/chat/completions", content=pieces).status_code == 413
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("audio/transcriptions", "audio/speech"):
        answer = client.post(f"/v1/{path}", content=b"no form", headers=form)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    for number in range(3):
        client.get(f"/v1/nothing/{number}")
    assert "/v1/nothing" not in client.get("/metrics").text
    assert client.put("/v1/models").json()["error"]["message"].startswith("PUT /v1/models")


def test_a_call_whose_client_went_away_is_given_up():
    stopped: list[bool] = []

    class Slow(Canned):
        def stream(self, source: Any, *, interrupt: Any, **_: Any) -> Any:
            for _ in range(500):
                if interrupt():
                    stopped.append(True)
                    break
                time.sleep(0.01)
            yield reply.TextPiece("so")

    body = json.dumps(ASKED).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [],
             "query_string": b"", "http_version": "1.1"}  # fmt: skip
    given = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        await asyncio.sleep(0.05)
        return next(given)

    async def send(message: Any) -> None:
        pass

    async def left() -> None:
        await Server(service(Slow())).app()(scope, receive, send)
        await asyncio.sleep(0.1)

    asyncio.run(left())
    assert stopped


@pytest.mark.parametrize(("origin", "host", "status"), [
    ("http://good.example", "testserver", 200), ("http://evil.example", "testserver", 403),
    ("http://localhost:8000", "localhost:8000", 200), ("http://[::1]:80", "[::1]:80", 200),
    ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
    ("http://evil.example:8000", "evil.example:8000", 403),     # made to mean this machine
])  # fmt: skip
def test_our_own_page_and_one_that_was_allowed_may_call_and_no_other(origin, host, status):
    asks = {"Origin": origin, "Host": host, "Access-Control-Request-Method": "POST"}
    with TestClient(Server(service(), origins=["http://good.example"]).app()) as client:
        answers = (client.options("/v1/chat/completions", headers=asks),
                   client.get("/v1/models", headers=asks))  # fmt: skip
        assert answers[1].status_code == status
        allowed = {one.headers.get("access-control-allow-origin") for one in answers}
        assert allowed == {origin if "good" in origin else None}
