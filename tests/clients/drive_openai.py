"""The `openai` package's own realtime connection, each event checked against its type; HTTP too."""

import asyncio
import base64
import io
import sys
import wave
from pathlib import Path
from typing import Any

import openai
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from speech import RATE_HZ, SAMPLE_BYTES, STEP_S, Microphone, passed, spoken

SESSION = {"type": "realtime", "audio": {"input": {
    "transcription": {"model": "whisper-1"},
    "turn_detection": {"type": "server_vad", "silence_duration_ms": 300}}}}  # fmt: skip
KINDS: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


class Talk:
    """A connection with a microphone, and what it has told."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.audio, self.heard = connection, b"", ""
        self.microphone = Microphone(self._send)

    async def _send(self, piece: bytes) -> None:
        await self.connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())

    async def until(self, kind: str) -> Any:
        """The next event of a kind; others are kept in mind."""
        while True:
            event = await asyncio.wait_for(self.connection.recv(), STEP_S)
            KINDS.validate_python(event.to_dict())
            assert event.type != "error", event
            if event.type == "response.created":
                self.audio = b""
            elif event.type == "response.output_audio.delta":
                self.audio += base64.b64decode(event.delta)
            elif event.type == "conversation.item.input_audio_transcription.completed":
                self.heard = event.transcript
            if event.type == kind:
                return event

    async def reply(self) -> Any:
        """The next reply that ends whole."""
        response = (await self.until("response.done")).response
        assert response.status == "completed", response
        return response.output[0]

    async def open(self) -> str:
        """The first events. Returns the session's id."""
        session = (await self.until("session.created")).session
        await self.connection.session.update(session=SESSION)
        told = (await self.until("session.updated")).session
        assert told.audio.input.turn_detection.interrupt_response is True, told
        return str(session.to_dict()["id"])

    async def break_in(self) -> str:
        """Speak over a reply; keep of it what was heard."""
        self.microphone.say(4)
        item = (await self.until("response.output_audio.delta")).item_id
        self.microphone.say(5)
        await self.until("input_audio_buffer.speech_started")
        await self.connection.conversation.item.truncate(
            item_id=item, content_index=0, audio_end_ms=500
        )
        await self.until("conversation.item.truncated")
        await self.connection.conversation.item.retrieve(item_id=item)
        held = (await self.until("conversation.item.retrieved")).item
        assert held.status == "incomplete", held
        await self.reply()
        return f"kept: {held.content[0].transcript!r}"


async def talk(client: Any) -> None:
    async with client.realtime.connect(model="any") as connection:
        one = Talk(connection)
        passed("connect", await one.open())
        one.microphone.say(3)
        item = await one.reply()
        passed("turn", spoken(one.audio, item.content[0].transcript) + f" <- {one.heard}")
        passed("break in", await one.break_in())
        one.microphone.say(6)
        item = await one.reply()
        passed("second turn", spoken(one.audio, item.content[0].transcript))
        one.microphone.close()
    async with client.realtime.connect(model="any") as connection:
        one = Talk(connection)
        number = await one.open()
        for role, kind in (("user", "input_text"), ("assistant", "output_text")):
            content = [{"type": kind, "text": "hello"}]
            item = {"type": "message", "role": role, "content": content}
            await connection.conversation.item.create(item=item)
            await one.until("conversation.item.done")
        one.microphone.say(5)
        item = await one.reply()
        spoken(one.audio, item.content[0].transcript)
        passed("reconnect", number)
        one.microphone.close()


async def call(client: Any) -> None:
    """The HTTP routes, and their errors as the package's own."""
    model = (await client.models.list()).data[0].id
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(RATE_HZ)
        file.writeframes((Path(sys.argv[2]) / "question_3.pcm").read_bytes())
    heard = await client.audio.transcriptions.create(model=model, file=("a.wav", held.getvalue()))
    said = await client.audio.speech.create(
        model=model, voice="alloy", input="Take a deep breath.", response_format="pcm"
    )
    spoken(said.content, "said")
    sound = base64.b64encode(held.getvalue()).decode()
    messages = [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}]}]  # fmt: skip
    pieces = [piece async for piece in await client.chat.completions.create(
        model=model, messages=messages, stream=True)]  # fmt: skip
    text = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
    assert text.strip(), pieces
    for wrong in ([], [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}]}]):  # fmt: skip
        try:
            await client.chat.completions.create(model=model, messages=wrong)
        except openai.BadRequestError as error:
            assert error.body, error
        else:
            raise AssertionError("a bad call was answered")
    passed("http", f"{heard.text} -> {text.strip()}")


async def main() -> None:
    client = openai.AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
    await talk(client)
    await call(client)


asyncio.run(main())
