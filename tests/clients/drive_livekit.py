"""LiveKit's realtime model without a room: its session, and its reconnection with its history."""

import asyncio
import sys
from typing import Any

import aiohttp
from livekit import rtc
from livekit.plugins.openai import realtime
from speech import RATE_HZ, SAMPLE_BYTES, STEP_S, Microphone, passed, spoken

HEARD_MS = 500
SESSION_S = 20.0                # after which the client connects again by itself
EVENTS = ("generation_created", "input_speech_started", "session_reconnected", "error",
          "input_audio_transcription_completed")  # fmt: skip


class Talk:
    """A session with a microphone, and what it has told."""

    def __init__(self, address: str, http: Any, longest_s: float | None = None) -> None:
        model = realtime.RealtimeModel(base_url=f"{address}/v1", api_key="none", http_session=http,
                                       max_session_duration=longest_s)  # fmt: skip
        self.session = model.session()
        self.told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.heard = ""
        for kind in EVENTS:
            self.session.on(kind, lambda event, kind=kind: self.told.put_nowait((kind, event)))
        self.microphone = Microphone(self.send)

    async def send(self, piece: bytes) -> None:
        samples = len(piece) // SAMPLE_BYTES
        self.session.push_audio(rtc.AudioFrame(piece, RATE_HZ, 1, samples))

    async def until(self, wanted: str) -> Any:
        """The next event of a kind. Raises AssertionError for an error event."""
        while True:
            kind, event = await asyncio.wait_for(self.told.get(), STEP_S)
            assert kind != "error", event
            if kind == "input_audio_transcription_completed":
                self.heard = event.transcript
            if kind == wanted:
                return event

    async def message(self) -> Any:
        """The message of the next generation."""
        generation = await self.until("generation_created")
        return await asyncio.wait_for(anext(aiter(generation.message_stream)), STEP_S)

    async def answered(self) -> str:
        return await whole(await self.message())

    async def close(self) -> None:
        self.microphone.close()
        await self.session.aclose()


async def whole(message: Any) -> str:
    """What a message says, to its end."""

    async def read() -> str:
        audio = b"".join([bytes(frame.data) async for frame in message.audio_stream])
        return spoken(audio, "".join([str(piece) async for piece in message.text_stream]))

    return await asyncio.wait_for(read(), STEP_S)


async def break_in(one: Talk) -> str:
    """As LiveKit's own agent does it: interrupt, and tell what was heard."""
    one.microphone.say(4)
    message = await one.message()
    await anext(aiter(message.audio_stream))
    one.microphone.say(5)
    await one.until("input_speech_started")
    one.session.interrupt()
    one.session.truncate(message_id=message.message_id, modalities=["audio"], audio_end_ms=HEARD_MS)
    return await one.answered()


async def talk(address: str, http: Any) -> None:
    one = Talk(address, http)
    greeting = one.session.generate_reply(instructions="Say hello.")
    passed("connect", f"generate_reply: {await one.answered()}")
    assert (await greeting).user_initiated
    one.microphone.say(3)
    passed("turn", f"{await one.answered()} <- {one.heard}")
    passed("break in", await break_in(one))
    one.microphone.say(6)
    told = await one.answered()
    roles = [item.role for item in one.session.chat_ctx.items if item.type == "message"]
    assert roles == ["assistant", *["user", "assistant"] * 4], roles
    passed("second turn", f"{told}; history of {len(roles)}")
    await one.close()


async def reconnect(address: str, http: Any) -> None:
    """The client closes a session that is old, and replays its history into a new one."""
    one = Talk(address, http, SESSION_S)
    one.microphone.say(3)
    await one.answered()
    await one.until("session_reconnected")
    one.microphone.say(5)
    told = await one.answered()
    roles = [item.role for item in one.session.chat_ctx.items if item.type == "message"]
    assert roles == ["user", "assistant"] * 2, roles
    passed("reconnect", f"{told}; history of {len(roles)}")
    await one.close()


async def main() -> None:
    async with aiohttp.ClientSession() as http:
        await talk(sys.argv[1], http)
        await reconnect(sys.argv[1], http)


asyncio.run(main())
