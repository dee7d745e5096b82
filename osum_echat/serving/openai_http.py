"""Speech, transcriptions and chat over HTTP, as OpenAI's API has them."""

import asyncio
import base64
import io
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from osum_echat.errors import InputError
from osum_echat.serving import protocol
from osum_echat.serving.audio_formats import FILE_FORMATS, FORMATS, Resampler, encode_file
from osum_echat.serving.items import Item, answer
from osum_echat.serving.protocol import Event, EventError, client_error, decode_audio, invalid
from osum_echat.serving.realtime import Service
from osum_echat.serving.reply_stream import Generation, perceived
from osum_echat.serving.session import Conversation, Question
from osum_echat.serving.turns import RATE_HZ

if TYPE_CHECKING:
    from starlette.responses import Response

    from osum_echat.inference.reply import Reply

PCM = FORMATS["audio/pcm"]
CALLS_AT_ONCE = 8                               # in threads of their own: live sessions need theirs
KEPT_REPLIES, KEPT_REPLY_S = 256, 3600         # that a later message may name by their audio's id
TEXT_FORMATS = ("json", "text", "verbose_json")


class OpenAiRoutes:
    """The POST routes that give replies. A call of one harms no other."""

    def __init__(self, service: Service) -> None:
        self.service, self._pool = service, ThreadPoolExecutor(CALLS_AT_ONCE, "call")
        self._replies: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def speech(self, asked: Mapping[str, Any]) -> "Response":
        """POST /v1/audio/speech."""
        text, form = asked.get("input"), str(asked.get("response_format") or "mp3")
        if not isinstance(text, str):
            raise invalid("input", text, "need a text")
        if form not in FILE_FORMATS:
            raise invalid("response_format", form, f"not one of {', '.join(FILE_FORMATS)}")
        *_, media = FILE_FORMATS[form]
        generation = await self._ask(Question("tts", text=text))
        if asked.get("stream_format") == "sse":
            return await streamed(self._speech_events(generation, form))
        if form == "pcm":
            return await streamed(pcm(generation), media)
        return whole(await self._file(await done(generation), form), media)

    async def _speech_events(self, generation: Generation, form: str) -> AsyncIterator[bytes]:
        async def file() -> AsyncIterator[bytes]:
            yield await self._file(await done(generation), form)

        async for data in pcm(generation) if form == "pcm" else file():
            yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        yield sse({"type": "speech.audio.done", "usage": {
            "input_tokens": 0, "output_tokens": 0, "total_tokens": 0}})  # fmt: skip

    async def _file(self, reply: "Reply", form: str) -> bytes:
        """The sound of a reply, whole: one of FILE_FORMATS."""
        if reply.wave is None or reply.sample_rate_hz is None:
            raise EventError("no_speech", "the model gave no speech for this text", status=500)
        return await self._work(encode_file, reply.wave.numpy(), reply.sample_rate_hz, form)

    async def _work(self, call: Callable[..., Any], *given: Any) -> Any:
        """What takes too long for the loop, which serves live sessions."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *given)

    async def transcription(self, asked: Mapping[str, Any]) -> "Response":
        """POST /v1/audio/transcriptions."""
        form, file = asked.get("response_format") or "json", asked.get("file")
        if form not in TEXT_FORMATS:
            raise invalid("response_format", form, f"not one of {', '.join(TEXT_FORMATS)}")
        if file is None or isinstance(file, str):
            raise invalid("file", file, "need a sound file")
        name = file.filename or "file"
        clip = await self._work(readable, await file.read(), name, self.service.limits.audio_s)
        generation = await self._ask(Question("asr", clip=clip, name=name))
        if str(asked.get("stream")).lower() == "true":
            return await streamed(self._transcript_events(generation))
        reply = await done(generation)
        text, seconds = reply.heard or "", round(reply.audio_in_s or 0.0, 3)
        if form == "text":
            return whole(f"{text}\n".encode(), "text/plain; charset=utf-8")
        told: Event = {"text": text, "usage": {"type": "duration", "seconds": seconds}}
        if form == "verbose_json":
            told |= {"task": "transcribe", "language": "english", "duration": seconds}
            told["segments"] = [
                {"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": text, "tokens": [],
                 "temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": 1.0,
                 "no_speech_prob": 0.0}]  # fmt: skip
        return as_json(told)

    async def _transcript_events(self, generation: Generation) -> AsyncIterator[bytes]:
        from osum_echat.inference.reply import Done, TextPiece

        async for event in generation.events():
            if isinstance(event, TextPiece):
                yield sse({"type": "transcript.text.delta", "delta": event.text})
            elif isinstance(event, Done):
                yield sse({"type": "transcript.text.done", "text": event.reply.heard or ""})

    async def chat(self, asked: Mapping[str, Any]) -> "Response":
        """POST /v1/chat/completions."""
        messages = asked.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("messages", messages, "need a list of messages")
        items, wanted = await self._work(list, self._items(messages)), asked.get("modalities")
        speaks = isinstance(wanted, list) and "audio" in wanted
        sound = protocol.mapping(asked.get("audio"), "audio")
        form = str(sound.get("format") or "wav").removesuffix("16")
        if speaks and form not in FILE_FORMATS:
            raise invalid("audio.format", form, f"not one of {', '.join(FILE_FORMATS)}")
        conversation = Conversation(self.service.limits)
        events = answer(self.service.assistant, conversation, items,
                        "audio" if speaks else "text", "label", "")  # fmt: skip
        generation = Generation(events, conversation, self._pool)
        head = {"id": protocol.make_id("chatcmpl"), "created": int(time.time()),
                "model": self.service.model}  # fmt: skip
        if asked.get("stream"):
            options = protocol.mapping(asked.get("stream_options"), "stream_options")
            usage = bool(options.get("include_usage"))
            return await streamed(self._chat_events(generation, head, speaks, usage))
        reply = await done(generation)
        message: Event = {"role": "assistant", "content": reply.text,
                          "x_osum": perceived(reply.labels, "label", reply.thought)}  # fmt: skip
        if speaks and reply.wave is not None:
            data, number = await self._file(reply, form), protocol.make_id("audio")
            self._keep(number, reply.text)
            message |= {"content": None, "audio": {
                "id": number, "data": base64.b64encode(data).decode(), "transcript": reply.text,
                "expires_at": int(time.time()) + KEPT_REPLY_S}}  # fmt: skip
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(reply)}
        used = usage_of(reply)
        return as_json({**head, "object": "chat.completion", "choices": [choice], "usage": used})

    def _keep(self, number: str, text: str) -> None:
        """The id of a message's sound stands for its words in later calls."""
        self._replies[number] = (time.monotonic() + KEPT_REPLY_S, text)
        while len(self._replies) > KEPT_REPLIES:
            self._replies.popitem(last=False)

    async def _chat_events(
        self, generation: Generation, head: Event, speaks: bool, usage: bool
    ) -> AsyncIterator[bytes]:
        from osum_echat.inference.reply import AudioPiece, Done, TextPiece

        number, resampler, first = protocol.make_id("audio"), None, {"role": "assistant"}
        base = {**head, "object": "chat.completion.chunk"}

        def chunk(delta: Event, reason: str | None = None) -> bytes:
            delta = {**first, **delta}
            first.clear()
            return sse({**base, "choices": [
                {"index": 0, "delta": delta, "finish_reason": reason}]})  # fmt: skip

        async for event in generation.events():
            if isinstance(event, TextPiece):
                audio = {"id": number, "transcript": event.text}
                yield chunk({"audio": audio} if speaks else {"content": event.text})
            elif isinstance(event, AudioPiece) and speaks:
                resampler = resampler or Resampler(event.sample_rate_hz, PCM.rate_hz)
                data = PCM.encode(resampler.push(event.samples.numpy()))
                yield chunk({"audio": {"data": base64.b64encode(data).decode()}})
            elif isinstance(event, Done):
                reply = event.reply
                if speaks:
                    end = np.zeros(0, np.float32)
                    rest = b"" if resampler is None else PCM.encode(resampler.push(end, last=True))
                    self._keep(number, reply.text)
                    yield chunk({"audio": {"data": base64.b64encode(rest).decode()}})
                    yield chunk({"audio": {"expires_at": int(time.time()) + KEPT_REPLY_S}})
                found = perceived(reply.labels, "label", reply.thought)
                yield chunk({"x_osum": found}, finish_reason(reply))
                if usage:
                    yield sse({**base, "choices": [], "usage": usage_of(reply)})
        yield b"data: [DONE]\n\n"

    def _items(self, messages: list[Any]) -> Iterator[Item]:
        """Chat messages as items of the conversation; system messages are left out."""
        for number, given in enumerate(messages):
            where = f"messages.{number}"
            if not isinstance(given, dict) or not isinstance(given.get("role"), str):
                raise invalid(where, given, "need an object with a role")
            if given["role"] in ("user", "assistant"):
                yield self._item(given, where)

    def _item(self, given: Mapping[str, Any], where: str) -> Item:
        content, item = given.get("content"), Item(given["role"])
        if isinstance(given.get("audio"), dict):
            number = given["audio"].get("id")
            until, text = self._replies.get(str(number), (0.0, ""))
            if until < time.monotonic():
                raise invalid(f"{where}.audio.id", number, "unknown, or expired")
            item.parts.append(protocol.part("output_text", text))
        for one in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if isinstance(one, dict) and one.get("type") == "input_audio":
                if item.clip:
                    raise invalid(where, "input_audio", "need one sound a message")
                data = protocol.mapping(one.get("input_audio"), f"{where}.input_audio").get("data")
                limits = self.service.limits
                sound = decode_audio(str(data or ""), limits.audio_bytes)
                item.clip = readable(sound, f"{where}.input_audio", limits.audio_s)
            elif isinstance(one, dict) and isinstance(one.get("text"), str):
                item.parts.append(protocol.part("input_text", one["text"]))
        return item

    async def _ask(self, question: Question) -> Generation:
        conversation = Conversation(self.service.limits)
        events = await self._work(conversation.ask, self.service.assistant, question)
        return Generation(events, conversation, self._pool)


async def pcm(generation: Generation) -> AsyncIterator[bytes]:
    """Sound at 24 kHz as it is made."""
    from osum_echat.inference.reply import AudioPiece

    resampler: Resampler | None = None
    async for event in generation.events():
        if isinstance(event, AudioPiece):
            resampler = resampler or Resampler(event.sample_rate_hz, PCM.rate_hz)
            yield PCM.encode(resampler.push(event.samples.numpy()))
    if resampler is not None:
        yield PCM.encode(resampler.push(np.zeros(0, np.float32), last=True))


async def done(generation: Generation) -> "Reply":
    """The reply at its end."""
    from osum_echat.inference.reply import Done

    reply = None
    async for event in generation.events():
        if isinstance(event, Done):
            reply = event.reply
    if reply is None:
        raise EventError("server_error", "the reply came to no end", status=500)
    return reply


def readable(data: bytes, name: str, most_s: float) -> bytes:
    """A clip that libsndfile reads; webm and m4a are decoded by the `av` package where it is.

    Raises InputError for one that cannot be decoded, or lasts over most_s seconds: a small file
    may hold hours.
    """
    if not data:
        raise InputError(f"{name}: no sound in it")
    if data[:4] != b"\x1a\x45\xdf\xa3" and data[4:8] != b"ftyp":
        return data
    try:
        import av
    except ImportError as error:
        raise EventError("unsupported_format", f"{name}: webm and m4a need the `av` package on the "
                         "server; send wav, flac, mp3 or ogg", status=415) from error  # fmt: skip
    pieces, left = [], most_s * RATE_HZ
    try:
        with av.open(io.BytesIO(data), "r") as container:
            resampler = av.AudioResampler("flt", "mono", RATE_HZ)
            for frame in chain(container.decode(audio=0), (None,)):
                for out in resampler.resample(frame):
                    pieces.append(out.to_ndarray().reshape(-1))
                    left -= len(pieces[-1])
                if left < 0:
                    raise InputError(f"{name}: over {most_s:g} s; cut it")
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise InputError(f"{name}: cannot be decoded ({error})") from error
    if not pieces:
        raise InputError(f"{name}: no sound in it")
    return encode_file(np.concatenate(pieces), RATE_HZ, "wav")


def finish_reason(reply: "Reply") -> str:
    return "length" if reply.stopped_by == "limit" else "stop"


def usage_of(reply: "Reply") -> Event:
    """What a reply took: tokens of its prompt, text and speech."""
    read, text, codes = reply.prompt_tokens, reply.text_tokens, len(reply.speech_tokens)
    return {"prompt_tokens": read, "completion_tokens": text + codes,
            "total_tokens": read + text + codes,
            "prompt_tokens_details": {"audio_tokens": reply.clip_tokens, "cached_tokens": 0},
            "completion_tokens_details": {"text_tokens": text, "audio_tokens": codes}}  # fmt: skip


def sse(value: Event) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n".encode()


async def streamed(
    pieces: AsyncIterator[bytes], media_type: str = "text/event-stream"
) -> "Response":
    """Pieces as they come. An error before the first still has its status; a later one is told
    among the events, or cuts a sound off."""
    from starlette.responses import StreamingResponse

    first = await anext(pieces, b"")

    async def sent() -> AsyncIterator[bytes]:
        yield first
        try:
            async for piece in pieces:
                yield piece
        except Exception as error:
            told = client_error(error, "a stream failed")
            if media_type != "text/event-stream":
                raise
            yield sse({"error": told.told()})

    return StreamingResponse(sent(), media_type=media_type)


def whole(data: bytes, media_type: str) -> "Response":
    """An answer in one piece."""
    from starlette.responses import Response

    return Response(data, media_type=media_type)


def as_json(value: Event, status: int = 200) -> "Response":
    """An object; half a character in it is no trouble."""
    from starlette.responses import Response

    return Response(json.dumps(value), status, media_type="application/json")

