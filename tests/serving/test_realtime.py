"""Claims about live sessions: every event of the protocol, in its order, whatever clients do."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from osum_echat import audio
from osum_echat.errors import InputError
from osum_echat.inference import reply
from osum_echat.records import Labels
from osum_echat.serving import items, protocol, reply_stream
from osum_echat.serving.audio_formats import FORMATS, Resampler
from osum_echat.serving.online import Server
from osum_echat.serving.protocol import EventError, SessionSettings, check_event
from osum_echat.serving.realtime import HANDLERS, MOST_REPLIES
from osum_echat.serving.session import Limits
from osum_echat.serving.turns import MOST_KEPT_S, Listener, TurnDetector, TurnSettings
from tests.serving import canned
from tests.serving.canned import HEARD, LABELS, THOUGHT, WORDS, Canned, Loud, service

PCM = FORMATS["audio/pcm"]
WINDOW = 512
DONE = SimpleNamespace(is_complete=lambda samples: True)     # a turn model: every pause is an end


@contextmanager
def connected(server: Server, **options: Any) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with (
        TestClient(server.app()) as client,
        client.websocket_connect("/v1/realtime?model=any&x_osum=events", **options) as socket,
    ):
        yield Client(socket)


class Client:
    """A client of the protocol; what it has seen is kept."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.seen = socket, []

    def send(self, kind: str, **more: Any) -> None:
        self.socket.send_text(json.dumps({"type": kind, **more}))

    def until(self, kind: str) -> dict[str, Any]:
        while True:
            event = json.loads(self.socket.receive_text())
            self.seen.append(event)
            assert event["event_id"].startswith("event_")
            if event["type"] == kind:
                return event

    def types(self) -> list[str]:
        return [event["type"] for event in self.seen]

    def speak(self, seconds: float, level: float = 0.3) -> None:
        """Sound of some loudness, in pieces of 100 ms."""
        for _ in range(round(seconds * 10)):
            data = PCM.encode(np.full(PCM.rate_hz // 10, level, np.float32))
            self.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    def say(self) -> None:
        """Half a second of speech, and the silence that ends a turn."""
        self.speak(0.5)
        self.speak(0.8, 0.0)

    def turn(self, seconds: float = 0.3) -> str:
        """A turn by hand. Returns its id."""
        self.speak(seconds)
        self.send("input_audio_buffer.commit")
        return self.until("conversation.item.done")["item"]["id"]

    def ask(self, **response: Any) -> None:
        """A reply, to the words x where the conversation holds no turn."""
        self.send("response.create", response={"instructions": "x", **response})

    def done(self) -> dict[str, Any]:
        """The next reply, at its end."""
        return self.until("response.done")["response"]

    def settle(self) -> None:
        """All that was on its way is seen."""
        self.send("input_audio_buffer.clear")
        self.until("input_audio_buffer.cleared")

    def update(self, **audio_input: Any) -> dict[str, Any]:
        self.send("session.update", session={"type": "realtime", "audio": {"input": audio_input}})
        return self.until("session.updated")["session"]


def until(held: Callable[[], Any]) -> None:
    """Wait for what holds within some seconds."""
    end = time.monotonic() + 3
    while not held() and time.monotonic() < end:
        time.sleep(0.02)


RESPONSE = [
    "response.created", "response.output_item.added", "conversation.item.added",
    "response.content_part.added", "response.output_audio_transcript.delta",
    "response.output_audio.delta", "response.output_audio.done",
    "response.output_audio_transcript.done", "response.content_part.done",
    "response.output_item.done", "conversation.item.done", "response.done",
]  # fmt: skip


def test_a_spoken_turn_goes_through_all_events_in_order():
    with connected(Server(service())) as client:
        assert client.until("conversation.created")["conversation"]["object"]
        client.update(transcription={"model": "whisper-1"})
        client.say()
        started = client.until("input_audio_buffer.speech_started")
        stopped = client.until("input_audio_buffer.speech_stopped")
        committed = client.until("input_audio_buffer.committed")
        assert started["item_id"] == stopped["item_id"] == committed["item_id"]
        assert started["audio_start_ms"] == 0 and 900 <= stopped["audio_end_ms"] <= 1100
        heard = client.until("conversation.item.input_audio_transcription.completed")
        assert heard["transcript"] == HEARD and heard["usage"]["type"] == "duration"
        perception = client.until("osum.perception")
        assert perception["emotion"] == {"label": LABELS.emotion}
        done = client.done()
        types = client.types()[client.types().index("response.created") :]
        assert sorted(RESPONSE, key=types.index) == RESPONSE
        assert (done["status"], done["metadata"]) == ("completed", None)
        assert types.count("osum.perception") == 0      # told before the reply, and once
        assert done["x_osum"]["thought"] == THOUGHT and done["x_osum"]["style"] == {"label": "SOFT"}
        (item,) = done["output"]
        assert item["content"] == [{"type": "output_audio", "transcript": "".join(WORDS)}]
        sound = b"".join(base64.b64decode(one["delta"]) for one in client.seen
                         if one["type"] == "response.output_audio.delta")  # fmt: skip
        assert len(sound) / 2 / PCM.rate_hz == pytest.approx(0.4, abs=0.001)
        assert not any(THOUGHT in json.dumps(one) for one in client.seen
                       if "transcript" in one["type"])  # fmt: skip


def test_nothing_optional_is_null_and_types_belong_to_their_places():
    with connected(Server(service())) as client:
        content = [{"type": "input_text", "text": "hi"}]
        client.send("conversation.item.create",
                    item={"type": "message", "role": "user", "content": content})  # fmt: skip
        client.ask(metadata={"a": "b"})
        assert client.done()["metadata"] == {"a": "b"}
        for event in client.seen:
            for item in (event.get("item"), *event.get("response", {}).get("output", ())):
                if item:
                    assert None not in item.values()
                    assert {one["type"] for one in item["content"]} <= {
                        "input_text", "input_audio", "output_text", "output_audio"}  # fmt: skip
                    assert all("transcript" in one for one in item["content"]
                               if one["type"].endswith("audio"))  # fmt: skip
            if "content_part" in event["type"]:
                assert event["part"]["type"] in ("text", "audio")


def test_speaking_over_a_reply_ends_it_first_and_then_tells_that_speech_began():
    assistant = Canned(words=("word ",) * 3)
    assistant.times = 5
    with connected(Server(service(assistant))) as client:
        client.say()
        client.until("response.output_audio.delta")
        del client.seen[:]
        client.speak(0.5)
        client.until("input_audio_buffer.speech_started")
        assert client.types().index("response.done") < len(client.types()) - 1
        client.speak(0.8, 0.0)
        client.done()


def test_a_turn_that_goes_on_before_a_reply_is_heard_is_answered_as_a_whole():
    assistant = Canned(waits=threading.Event())
    with connected(Server(service(assistant))) as client:
        client.update(transcription={"model": "whisper-1"})
        client.say()
        first = client.until("input_audio_buffer.committed")["item_id"]
        client.say()                                    # nothing of a reply was heard
        second = client.until("response.created") and client.until("input_audio_buffer.committed")
        assert second["previous_item_id"] == first
        assistant.waits.set()
        assert client.done()["status"] == "completed"
        lengths = [audio.length(one.user.audio) / 16_000 for one, _ in assistant.asked]
        told = {one["item_id"] for one in client.seen if one["type"].endswith("tion.completed")}
        while told != {first, second["item_id"]}:       # each one's words are its own
            told.add(client.until("conversation.item.input_audio_transcription.completed")["item_id"])
        client.say()
        client.done()
        history = assistant.asked[-1][0].history
    assert lengths[0] == pytest.approx(0.7, abs=0.15)
    assert max(lengths) == pytest.approx(2 * lengths[0] + 0.3, abs=0.15)
    assert [turn.text for turn in history] == [f"{HEARD} {HEARD}"]


def test_a_turn_deleted_while_it_goes_on_in_the_next_is_not_answered():
    assistant = Canned(waits=threading.Event())
    with connected(Server(service(assistant))) as client:
        client.say()
        first = client.until("input_audio_buffer.committed")["item_id"]
        client.speak(0.5)
        client.until("input_audio_buffer.speech_started")
        client.send("conversation.item.delete", item_id=first)
        client.until("conversation.item.deleted")
        client.say()
        client.until("input_audio_buffer.committed")
        assistant.waits.set()
        client.done()
    lengths = [audio.length(one.user.audio) / 16_000 for one, _ in assistant.asked]
    assert 1 < max(lengths) < 1.6           # of the second alone


def test_a_cough_does_not_stop_a_reply_and_half_duplex_hears_nothing_then():
    detector = TurnDetector(TurnSettings())
    assert [detector.push(1.0, n * WINDOW, True) for n in range(1, 9)] == [None] * 8
    assert detector.push(0.0, 9 * WINDOW, True) is None and not detector.in_turn
    with connected(Server(service(Canned(times=5)))) as client:
        client.send("session.update", session={"type": "realtime", "x_osum": {"half_duplex": True}})
        client.say()
        client.until("response.output_audio.delta")
        client.speak(0.3)
        client.done()
        client.settle()
        assert client.types().count("input_audio_buffer.speech_started") == 1


@pytest.mark.parametrize("is_recognized", [False, True])
@pytest.mark.parametrize(("kind", "heard", "event", "is_answered"), [
    ("server_vad", "", "OTHER", False), ("server_vad", "", "SIGH", True),
    ("server_vad", HEARD, "OTHER", True), ("semantic_vad", "", "SIGH", False),
    ("semantic_vad", HEARD, "OTHER", True),
])  # fmt: skip
def test_a_turn_without_words_is_not_answered(
    kind: str, heard: str, event: str, is_answered: bool, is_recognized: bool
):
    assistant = Canned(heard=heard, labels=Labels(event=event), is_recognized=is_recognized)
    with connected(Server(service(assistant, DONE))) as client:
        told = client.update(turn_detection={"type": kind}, transcription={"model": "own"})
        assert told["audio"]["input"]["turn_detection"]["type"] == kind
        client.say()
        words = client.until("conversation.item.input_audio_transcription.completed")
        assert words["transcript"] == heard
        assert words.get("x_osum", {}).get("event") == ({"label": event} if is_recognized else None)
        if is_answered:
            client.done()
        client.settle()
        assert client.types().count("response.created") == is_answered


def test_a_user_who_says_nothing_is_spoken_to_after_the_idle_timeout():
    with connected(Server(service())) as client:
        client.update(turn_detection={"type": "server_vad", "idle_timeout_ms": 50})
        client.ask()
        first = client.done()["id"]
        client.speak(0.3, 0.0)
        waited = client.until("input_audio_buffer.timeout_triggered")
        assert 0 <= waited["audio_start_ms"] <= waited["audio_end_ms"] <= 300
        assert client.until("conversation.item.done")["item"]["id"] == waited["item_id"]
        assert client.done()["id"] != first


def test_manual_turns_need_commit_and_response_create_and_begin_after_what_was_heard_before():
    with connected(Server(service(limits=Limits(audio_s=1)))) as client:
        client.speak(3.0, 0.0)
        assert client.update(turn_detection=None)["audio"]["input"]["turn_detection"] is None
        client.send("input_audio_buffer.commit", event_id="mine")
        error = client.until("error")["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
        client.turn()
        client.send("response.create")
        assert client.done()["status"] == "completed" and client.types().count("error") == 1


def test_the_second_turn_knows_the_first_as_far_as_it_was_heard():
    assistant = Canned(words=("one ", "two ", "three ", "four"))
    with connected(Server(service(assistant))) as client:
        client.update(turn_detection=None)
        for number in range(2):
            client.turn()
            client.ask()
            item = client.done()["output"][0]
            if number == 0:
                client.send("conversation.item.truncate", item_id=item["id"], content_index=0,
                            audio_end_ms=200)  # fmt: skip
                assert client.until("conversation.item.truncated")["audio_end_ms"] == 200
                client.send("conversation.item.retrieve", item_id=item["id"])
                held = client.until("conversation.item.retrieved")["item"]["content"]
                assert held == [{"type": "output_audio", "transcript": "one two"}]
    (turn,) = assistant.asked[1][0].history
    assert turn.reply_text == "one two" and isinstance(turn.audio, bytes)


def test_a_reply_that_was_prepared_knows_what_was_heard_of_the_one_before():
    assistant = Canned(words=("one ", "two ", "three ", "four"))
    with connected(Server(service(assistant))) as client:
        client.say()
        item = client.done()["output"][0]["id"]
        client.speak(0.5)
        client.speak(0.2, 0.0)
        until(lambda: len(assistant.asked) == 2)
        client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=200)
        client.speak(0.8, 0.0)
        client.done()
    assert [one.reply_text for one in assistant.asked[-1][0].history] == ["one two"]


def test_a_session_keeps_the_sound_of_no_more_turns_than_it_remembers():
    server = Server(service(limits=Limits(turns=1)))
    with connected(server) as client:
        client.update(turn_detection=None)
        for _ in range(4):
            client.turn()
        (session,) = server.open.values()
        assert [item.clip is not None for item in session.items] == [False, False, True, True]


def test_items_are_created_placed_deleted_and_refused():
    def message(number: str) -> dict[str, Any]:
        content = [{"type": "input_text", "text": number}]
        return {"id": number, "type": "message", "role": "user", "content": content}

    with connected(Server(service())) as client:
        for number, place in (("b", None), ("a", "root"), ("c", "b")):
            more = {} if place is None else {"previous_item_id": place}
            client.send("conversation.item.create", item=message(number), **more)
            client.until("conversation.item.done")
        assert client.seen[-1]["previous_item_id"] == "b"
        client.send("conversation.item.create", item=message("a"), event_id="e1")
        assert client.until("error")["error"] == {
            "type": "invalid_request_error", "code": "item_create_duplicate_item_id",
            "message": "item.id a: there is one already", "event_id": "e1"}  # fmt: skip
        client.send("conversation.item.delete", item_id="b")
        assert client.until("conversation.item.deleted")["item_id"] == "b"
        for kind in ("retrieve", "delete"):
            client.send(f"conversation.item.{kind}", item_id="b")
            assert client.until("error")["error"]["code"] == f"item_{kind}_invalid_item_id"


def test_nothing_to_cancel_or_to_answer_and_a_reply_that_fails_leave_the_session_open():
    assistant = Canned(error=RuntimeError("inside"))
    with connected(Server(service(assistant))) as client:
        client.send("response.cancel")
        error = client.until("error")["error"]
        assert error["code"] == "response_cancel_not_active"
        assert error["message"].startswith("Cancellation failed")
        for words in ("", "x"):
            client.ask(instructions=words)
            done = client.done()
            assert done["status"] == "failed" and done["status_details"]["error"]["code"]
            assert "inside" not in json.dumps(done)
        assistant.error = None
        client.ask()
        assert client.done()["status"] == "completed"


@pytest.mark.parametrize(("status", "audio_ms", "heard_ms", "kept"), [
    ("completed", 1000, 500, 5), ("completed", 1000, 2000, 10), ("incomplete", 600, 600, 2),
    ("incomplete", 600, 5000, 2), ("incomplete", 6000, 3000, 5), ("completed", 1000, 0, 0),
])  # fmt: skip
def test_words_ahead_of_the_sound_of_a_reply_cut_short_were_not_heard(
    status: str, audio_ms: int, heard_ms: int, kept: int
):
    words = "one two three four five six seven eight nine ten"
    item = items.Item("assistant", [protocol.part("output_audio", words)], status=status,
                      audio_ms=audio_ms)  # fmt: skip
    item.truncate(heard_ms)
    assert item.text == " ".join(words.split()[:kept])


@pytest.mark.parametrize(("how", "told"), [
    ("response.cancel", []), ("conversation.item.delete", ["conversation.item.deleted"]),
])  # fmt: skip
def test_nothing_of_a_reply_is_told_after_it_was_cancelled_or_deleted(how: str, told: list[str]):
    class InOnePiece(Canned):
        def stream(self, *_: Any, **__: Any) -> Any:
            yield reply.AudioPiece(torch.zeros(8 * canned.RATE_HZ), canned.RATE_HZ)

    with connected(Server(service(InOnePiece()))) as client:
        client.ask()
        item = client.until("response.output_item.added")["item"]["id"]
        for _ in range(round(reply_stream.LEAD_S / reply_stream.SLICE_S)):
            client.until("response.output_audio.delta")
        client.send(how, item_id=item)
        client.done()
        time.sleep(reply_stream.SLICE_S + 0.1)
        client.settle()
        kinds = client.types()
        rest = kinds[kinds.index("response.done") + 1 :]
        assert rest == [*told, "input_audio_buffer.cleared"]


def test_every_client_event_of_the_protocol_is_handled():
    assert set(protocol.client_events()) == set(HANDLERS)
    check_event({"type": "conversation.item.delete", "item_id": "x"})
    with pytest.raises(EventError, match=r"conversation\.item\.delete"):
        check_event({"type": "conversation.item.delete"})


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"type": 1}', '{"type": "nope"}',
                                  '{"type": "input_audio_buffer.append", "audio": 7}',
                                  "[" * 100_000])  # fmt: skip
def test_what_is_no_event_is_an_error_and_the_session_goes_on(text: str):
    with connected(Server(service())) as client:
        client.socket.send_text(text)
        assert client.until("error")["error"]["type"] == "invalid_request_error"
        client.send("input_audio_buffer.append", audio="no base64!")
        assert client.until("error")["error"]["code"] == "invalid_base64"
        client.send("input_audio_buffer.append", audio="AAAA")      # a sample and a half
        assert client.until("error")["error"]["code"] == "invalid_value"
        client.update()


def test_settings_of_stock_clients_are_taken_without_an_error():
    given = {
        "type": "realtime", "model": "gpt-realtime", "tracing": "auto", "truncation": "auto",
        "tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "auto",
        "instructions": "Be kind.", "include": ["x"], "prompt": {"id": "p"},
        "audio": {"input": {"noise_reduction": {"type": "near_field"},
                            "turn_detection": {"type": "semantic_vad", "eagerness": "auto"}},
                  "output": {"voice": {"id": "marin"}, "speed": 1.0}},
    }  # fmt: skip
    told = SessionSettings("tiny", "default").merged(given, has_turn_model=False).session("s", 1)
    assert told["audio"]["input"]["turn_detection"] == {
        "type": "server_vad", "create_response": True, "interrupt_response": True,
        "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
        "idle_timeout_ms": None,
    }  # fmt: skip
    assert told["audio"]["output"]["voice"] == "default" and told["model"] == "tiny"
    assert told["x_osum"]["ignored"] == ["instructions", "prompt", "tools"]
    from openai.types.realtime import RealtimeSessionCreateRequest

    RealtimeSessionCreateRequest.model_validate(told)


@pytest.mark.parametrize("given", [
    {"output_modalities": ["text", "audio"]}, {"audio": {"input": {"format": {"type": "x"}}}},
    {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}, {"audio": []},
    {"audio": {"input": {"turn_detection": {"type": "x"}}}},
    {"audio": {"input": {"turn_detection": {"threshold": 7}}}},
    {"audio": {"input": {"turn_detection": {"idle_timeout_ms": "soon"}}}},
    {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "x"}}}},
    {"audio": {"output": {"speed": "fast"}}}, {"type": "transcription"},
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(given: dict[str, Any]):
    with pytest.raises(EventError):
        SessionSettings("tiny", "default").merged(given, False)


@pytest.mark.parametrize("name", list(FORMATS))
def test_sound_survives_its_format(name: str):
    form = FORMATS[name]
    wave = 0.5 * np.sin(np.arange(form.rate_hz) * 0.05).astype(np.float32)
    assert np.abs(form.decode(form.encode(wave)) - wave).max() < 0.03
    assert np.abs(FORMATS["audio/pcm"].encode(np.array([2.0, -2.0], np.float32))[1]) == 127


@pytest.mark.parametrize("size", [1, 7, 160, 999])
def test_resampling_in_pieces_is_resampling_the_whole(size: int):
    wave = np.random.default_rng(0).normal(0, 0.1, 2_400).astype(np.float32)
    whole = Resampler(24_000, 16_000).push(wave, last=True)
    pieces = Resampler(24_000, 16_000)
    parts = [pieces.push(wave[at : at + size]) for at in range(0, len(wave), size)]
    joined = np.concatenate([*parts, pieces.push(wave[:0], last=True)])
    np.testing.assert_allclose(joined, whole, atol=1e-6)


def test_a_silent_client_is_told_the_end_of_the_reply_before_it_is_closed():
    from starlette.websockets import WebSocketDisconnect

    with connected(Server(service(Canned(times=20)), idle_s=0.3)) as client:
        client.ask()
        assert client.done()["status"] == "cancelled"
        with pytest.raises(WebSocketDisconnect) as closed:
            client.until("session.updated")
        assert closed.value.code == 1000


def test_words_are_told_of_the_turn_that_holds_them():
    waiting = threading.Event()
    with connected(Server(service(Canned(waits=waiting)))) as client:
        client.update(turn_detection=None, transcription={"model": "own"})
        first = client.turn()
        client.ask()
        client.until("response.created")
        client.turn()
        waiting.set()
        heard = client.until("conversation.item.input_audio_transcription.completed")
        assert heard["item_id"] == first
        client.done()


@pytest.mark.parametrize("error", [None, InputError("too loud")])
def test_a_turn_that_no_reply_answers_has_words_too(error, monkeypatch):
    monkeypatch.setattr(reply_stream, "REPLY_BEGINS_S", 0.05)
    with connected(Server(service(Canned(error=error)))) as client:
        turn = {"type": "server_vad", "create_response": False}
        client.update(turn_detection=turn, transcription={"model": "own"})
        client.say()
        item = client.until("input_audio_buffer.committed")["item_id"]
        kind = "conversation.item.input_audio_transcription"
        heard = client.until(f"{kind}.completed" if error is None else f"{kind}.failed")
        assert heard["item_id"] == item and "response.created" not in client.types()
        assert heard["transcript"] == HEARD if error is None else "too loud" in str(heard)
        client.say()
        later = client.until("input_audio_buffer.committed")["item_id"]
        assert client.until(heard["type"])["item_id"] == later      # what failed is told once


def test_responses_beside_the_conversation_are_few_and_are_cancelled_by_their_ids():
    with connected(Server(service(Canned(times=20)))) as client:
        for _ in range(MOST_REPLIES):
            client.ask(conversation="none")
        first = client.until("response.output_audio.delta")["response_id"]
        client.ask(conversation="none")
        assert client.until("error")["error"]["code"] == "too_many_responses"
        client.send("response.cancel", response_id=first)
        done = client.done()
        assert (done["id"], done["status"]) == (first, "cancelled")
        assert not any(kind.startswith("conversation.item") for kind in client.types())


def test_sound_that_comes_too_fast_is_not_kept():
    async def flooded() -> None:
        listener = Listener(Loud(), 16_000, TurnSettings(), bool, None, None)
        for _ in range(4):
            with pytest.raises(EventError, match="faster"):
                listener.push(np.zeros(60 * 16_000, np.float32), False)
        assert sum(map(len, listener.buffer._pieces)) <= 16_000 * MOST_KEPT_S
        assert len(listener._left) < WINDOW
        listener.task.cancel()

    asyncio.run(flooded())


def test_first_sounds_are_held_for_as_long_as_later_ones_were_late():
    class Slow(Canned):
        def stream(self, *_: Any, **__: Any) -> Any:
            for _ in range(2):
                yield reply.AudioPiece(torch.zeros(canned.RATE_HZ // 10), canned.RATE_HZ)
                time.sleep(0.25)

    slow, waits = service(Slow()), []
    with connected(Server(slow)) as client:
        for _ in range(2):
            client.ask()
            first, second = (client.until("response.output_audio.delta") and time.monotonic()
                             for _ in range(2))  # fmt: skip
            waits.append(second - first)
            client.done()
    assert waits[0] > 0.2 > 0.15 > waits[1]
    slow.playout.ended(-1.0, 0)
    assert 0 < slow.playout.hold_s(0) < slow.playout.hold_s(1) <= reply_stream.MOST_HOLD_S


def test_a_session_that_was_left_begins_nothing():
    from starlette.testclient import TestClient

    waiting, asked = threading.Event(), []

    class Slow(Canned):
        def stream(self, *given: Any, **_: Any) -> Any:
            asked.append(given)
            yield reply.TextPiece("so")
            waiting.wait(10)

    with TestClient(Server(service(Slow())).app()) as http:
        with http.websocket_connect("/v1/realtime") as socket:
            client = Client(socket)
            client.update(turn_detection={"type": "server_vad", "idle_timeout_ms": 1})
            client.ask()
            client.until("response.output_audio_transcript.delta")
        time.sleep(0.2)
        waiting.set()
    assert len(asked) == 1
