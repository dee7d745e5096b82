"""One reply of a live session: made in a thread, told in the protocol's order, paced, cut short."""

import asyncio
import base64
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from osum_echat.serving.audio_formats import Resampler
from osum_echat.serving.items import Item
from osum_echat.serving.protocol import Event, SessionSettings, client_error, make_id, part
from osum_echat.serving.session import LABELS, Conversation, Question

if TYPE_CHECKING:
    from osum_echat.inference.reply import Event as ReplyEvent
    from osum_echat.inference.reply import Reply
    from osum_echat.records import Labels

LEAD_S = 2.0                    # of sound sent ahead of its playing
MADE_AHEAD_S = 2.5              # of sound made ahead of it: others wait for the processor
SLICE_S = 0.2                   # of sound in an event
HOLD_S = 0.05                   # before the first sound, for each other reply under way: beside
                                # them the next sound is made more slowly
MOST_HOLD_S, SPARE_S, FORGET = 0.4, 0.02, 0.8   # FORGET: what is kept of a hold, a reply
NO_EVENT = "OTHER"              # a label: no sound but speech
REPLY_BEGINS_S = 1.0            # after a turn; if none does, its words are found without one
CREATED_S = 1.0                 # for which response.created waits for what was heard in the voice


def perceived(labels: "Labels", thinking: str, thought: str | None = None) -> Event:
    """What was heard in a voice, as typed fields; what is unknown is left out."""
    found = {name: {"label": getattr(labels, name)} for name in LABELS if getattr(labels, name)}
    return {**found, "thinking": thinking, **({"thought": thought} if thought else {})}


class Playout:
    """The replies that are played as they are made, and how long each one's first sound is held so
    that its next ones come in time: longer after a reply that was late."""

    def __init__(self) -> None:
        self.under_way: set[Generation] = set()
        self.late_s = 0.0

    def hold_s(self, others: int) -> float:
        """others: that are made at the same time."""
        return min(MOST_HOLD_S, HOLD_S * others + self.late_s)

    def ended(self, late_s: float, others: int) -> None:
        """Learn from a reply. late_s: of its sound, at most, had its first not been held."""
        needed = late_s + SPARE_S - HOLD_S * others
        self.late_s = min(MOST_HOLD_S, max(0.0, needed, FORGET * self.late_s))


class Generation:
    """The events of a reply, made in a thread of the pool from the moment it is built."""

    def __init__(
        self, events: Iterator["ReplyEvent"], conversation: Conversation, pool: Any,
        playout: Playout | None = None, tells_thoughts: bool = True,
    ) -> None:  # fmt: skip
        """conversation: whose reply it is; pool: of threads; playout: of those that are played as
        they are made, so not much is made ahead: it joins them; tells_thoughts: piece by piece,
        which wakes the loop at every token."""
        self._events, self._conversation = events, conversation
        self.playout, self._tells_thoughts = playout, tells_thoughts
        if playout is not None:
            playout.under_way.add(self)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[ReplyEvent | Exception | None] = asyncio.Queue()
        self._stopped, self._made_s, self._first_made = threading.Event(), 0.0, 0.0
        self._loop.run_in_executor(pool, self._run)

    @property
    def others(self) -> int:
        """How many more are made for players at the same time."""
        return len(self.playout.under_way - {self}) if self.playout is not None else 0

    def stop(self) -> None:
        """Nobody waits for it any longer; the decoding loop asks at every step."""
        self._stopped.set()
        self._conversation.interrupt()

    async def events(self) -> "AsyncIterator[ReplyEvent]":
        """As they come; raises what the reply fails of. Left early, it stops."""
        try:
            while (event := await self._queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.stop()

    def _put(self, event: "ReplyEvent | Exception | None") -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    def _rest(self, event: "ReplyEvent") -> None:
        """Wait while enough sound is made."""
        from osum_echat.inference.reply import AudioPiece

        if self.playout is not None and isinstance(event, AudioPiece):
            self._first_made = self._first_made or time.monotonic()
            self._made_s += len(event.samples) / event.sample_rate_hz
            self._stopped.wait(self._first_made + self._made_s - MADE_AHEAD_S - time.monotonic())

    def _run(self) -> None:
        from osum_echat.inference.reply import ThoughtPiece

        try:
            for event in () if self._stopped.is_set() else self._events:
                if self._stopped.is_set():
                    break
                if self._tells_thoughts or not isinstance(event, ThoughtPiece):
                    self._put(event)
                self._rest(event)
        except Exception as error:
            self._put(error)
        finally:
            close = getattr(self._events, "close", None)
            if close is not None:
                close()
            if self.playout is not None:
                self.playout.under_way.discard(self)
            self._put(None)


class Transcriber:
    """Finds the words of turns that no reply tells, one after the other, where they are wanted."""

    def __init__(self, owner: Any) -> None:
        """owner: the session, whose turns they are; it is told the words."""
        self.owner = owner
        self.task: asyncio.Task[None] | None = None
        self.tried: set[str] = set()        # ids of turns; what failed is not heard again

    def look(self) -> None:
        """There may be such a turn; a reply to it may yet begin."""
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._run())

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        from osum_echat.inference.reply import Done

        await asyncio.sleep(REPLY_BEGINS_S)
        while (item := self._unheard()) is not None:
            self.tried.add(item.id)
            service = self.owner.service
            conversation = Conversation(service.limits)
            events = conversation.ask(service.assistant, Question("asr", clip=item.clip))
            try:
                async for event in Generation(events, conversation, service.pool).events():
                    if isinstance(event, Done):
                        self.owner.words_known(item, event.reply.heard or "")
            except Exception as error:
                told = client_error(error, "a transcription failed").told()
                self.owner.send(item.transcription("failed", error=told))

    def _unheard(self) -> Item | None:
        """A turn whose words are wanted and that no reply under way will tell."""
        told = {one.asked.id for one in self.owner.replies
                if one.is_active and one.asked is not None}  # fmt: skip
        for item in self.owner.items if self.owner.settings.transcription is not None else ():
            is_known = item.sound is None or item.sound["transcript"] is not None
            if not is_known and item.id not in self.tried | told:
                return item
        return None


class ReplyStream:
    """A response: a task tells a generation's events, `cancel` ends it early; it ends once."""

    def __init__(
        self, owner: Any, generation: Generation, settings: SessionSettings, *, alone: bool = False,
        asked: Item | None = None, found_by: str = "", metadata: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """owner: the session, which sends events and hears of words, labels and the end; alone:
        beside the conversation, whose items it leaves as they are; asked: the user's item that is
        answered; found_by: the turn detection that says so, which may be wrong."""
        self.owner, self.generation, self.settings = owner, generation, settings
        self.alone, self.asked, self.found_by, self.metadata = alone, asked, found_by, metadata
        self.id, self.item = make_id("resp"), Item("assistant", status="in_progress")
        self.status, self.reason = "in_progress", ""
        self.failure: Event | None = None
        self.thought = ""
        self.perception: Event | None = None
        self.heard: str | None = None       # the user's words
        self.event: str | None = None       # a sound in the user's turn
        self.opened = self.begun = False
        self.sent_samples, self.first_sent = 0, 0.0
        self.others, self.held_s = 0, 0.0           # of its first sound
        self.late_s = -math.inf                     # of the later ones, at most
        self.text = ""
        self.tokens = 0, 0, 0           # of the prompt, its clips, and the text, once it is done
        self._resampler: Resampler | None = None
        self.task = asyncio.create_task(self._run())

    @property
    def is_active(self) -> bool:
        return self.status == "in_progress"

    @property
    def was_noticed(self) -> bool:
        """The user may have heard or read some of it, or it has ended."""
        is_read = self.begun and self.settings.modality == "text"
        return is_read or self.sent_samples > 0 or not self.is_active

    @property
    def is_wordless(self) -> bool:
        """The turn holds no words, nor a sound that would be answered without any."""
        has_sound = self.found_by == "server_vad" and self.event not in (None, NO_EVENT)
        return self.heard == "" and self.found_by != "" and not has_sound

    @property
    def plays_until(self) -> float:
        """Monotonic second at which a client that plays at once has played what was sent."""
        return self.first_sent + self.sent_samples / self.settings.output_format.rate_hz

    async def _run(self) -> None:
        """Tell the reply until its end."""
        try:
            async for event in self.generation.events():
                await self._tell(event)
                if not self.is_active:
                    return
            self.finish("completed")
        except Exception as error:
            self.failure = client_error(error, "a reply failed").told()
            self.finish("failed")

    async def _tell(self, event: "ReplyEvent") -> None:
        from osum_echat.inference import reply as kinds

        if isinstance(event, kinds.LabelsFound):
            self.event = event.labels.event
        if self.is_wordless and not isinstance(event, kinds.ThoughtPiece):
            self._leave_out()
            return
        match event:
            case kinds.Heard(text=text):
                self.heard = text
                self._words_known(text)
            case kinds.LabelsFound(labels=labels):
                before, self.perception = self.perception, perceived(labels, self.settings.thinking)
                self.owner.perceived(self, self.perception, self.perception != before)
            case kinds.ThoughtPiece(text=text):
                self.thought += text
                self._own_event("osum.thought.delta", delta=text)
            case kinds.TextPiece(text=text):
                self._begin()
                self.text += text
                name = "audio_transcript" if self.settings.modality == "audio" else "text"
                self._send(f"response.output_{name}.delta", delta=text, **self._place())
            case kinds.AudioPiece(samples=samples, sample_rate_hz=rate_hz):
                self._begin()
                await self._sound(samples.numpy(), rate_hz)
            case kinds.Done(reply=reply):
                await self._done(reply)

    def _words_known(self, text: str) -> None:
        """Tell the user's words; those of a turn that goes on in this one are found apart."""
        if self.asked is not None and self.asked.continues is None:
            self.owner.words_known(self.asked, text)

    def _leave_out(self) -> None:
        """Nobody spoke to us: the reply ends before anything was told of it."""
        self.generation.stop()
        self.status = "left_out"
        self.owner.finished(self)

    async def _sound(self, samples: Any, rate_hz: int, last: bool = False) -> None:
        """Send sound, at most LEAD_S ahead of its playing."""
        form = self.settings.output_format
        if self._resampler is None:
            self._resampler = Resampler(rate_hz, form.rate_hz)
        samples, step = self._resampler.push(samples, last), round(SLICE_S * form.rate_hz)
        if self.first_sent and not last:
            self.late_s = max(self.late_s, time.monotonic() - self.plays_until)
        for start in range(0, len(samples), step):
            if not self.first_sent:
                await self._hold()
                self.first_sent = time.monotonic()
                self.owner.first_audio(self)
            cut = samples[start : start + step]
            self.sent_samples += len(cut)
            data = base64.b64encode(form.encode(cut)).decode()
            self._send("response.output_audio.delta", delta=data, **self._place())
            ahead = self.plays_until - time.monotonic() - LEAD_S
            if ahead > 0:
                await asyncio.sleep(ahead)

    async def _hold(self) -> None:
        """Wait so long that the sounds after the first will be there in time."""
        if (playout := self.generation.playout) is not None:
            self.others = self.generation.others
            self.held_s = playout.hold_s(self.others)
            await asyncio.sleep(self.held_s)

    async def _done(self, reply: "Reply") -> None:
        import numpy as np

        self._begin()
        self.thought, self.item.speech_tokens = reply.thought or self.thought, reply.speech_tokens
        self.tokens = reply.prompt_tokens, reply.clip_tokens, reply.text_tokens
        if self._resampler is not None and reply.sample_rate_hz:
            await self._sound(np.zeros(0, np.float32), reply.sample_rate_hz, last=True)
        if any(getattr(reply.labels, name) for name in LABELS) or self.thought:
            is_new = self.perception is None
            self.perception = perceived(reply.labels, self.settings.thinking, self.thought)
            self.owner.perceived(self, self.perception, is_new)
        self._words_known(reply.heard or "")
        is_cut = reply.stopped_by == "limit"
        self.finish("incomplete" if is_cut else "completed", "max_output_tokens" if is_cut else "")

    def cancel(self, reason: str) -> None:
        """End it, if it has not ended: turn_detected or client_cancelled. Nothing of it is sent
        afterwards."""
        self.finish("cancelled", reason)
        self.task.cancel()

    def finish(self, status: str, reason: str = "") -> None:
        """Tell the end, once."""
        if not self.is_active:
            return
        self.generation.stop()
        self.open()
        self.status, self.reason = status, reason
        rate = self.settings.output_format.rate_hz
        self.item.audio_ms = 1000 * self.sent_samples // rate
        if self.begun:
            self.item.status = "completed" if status == "completed" else "incomplete"
            self._end_item()
        if self.generation.playout is not None and self.first_sent:
            self.generation.playout.ended(self.held_s + self.late_s, self.others)
        self._own_event("osum.thought.done", thought=self.thought)
        self._send("response.done", response=self.told())
        self.owner.finished(self)

    def open_soon(self) -> None:
        """Tell it without what was heard in the voice, should that take long: clients wait."""
        asyncio.get_running_loop().call_later(CREATED_S, self.open)

    def open(self) -> None:
        """Tell that there is a response, with what was heard in the voice if that is known."""
        if not self.opened and self.is_active:
            self.opened = True
            self._send("response.created", response=self.told())

    def _begin(self) -> None:
        """Tell the item and its one part, before the first words or sound."""
        if self.begun:
            return
        self.open()
        self.begun = True
        self._send("response.output_item.added", response_id=self.id, output_index=0,
                   item=self.item.told())  # fmt: skip
        if not self.alone:
            self.owner.items.append(self.item)
            self.owner.tell_item(self.item, "added")
        self._send("response.content_part.added", part=self._part(""), **self._place())

    def _end_item(self) -> None:
        is_audio = self.settings.modality == "audio"
        text = self.text.strip()
        self.item.parts = [part("output_audio" if is_audio else "output_text", text)]
        if is_audio:
            self._send("response.output_audio.done", **self._place())
            self._send(
                "response.output_audio_transcript.done", transcript=text, **self._place()
            )
        else:
            self._send("response.output_text.done", text=text, **self._place())
        self._send("response.content_part.done", part=self._part(text), **self._place())
        self._send("response.output_item.done", response_id=self.id, output_index=0,
                   item=self.item.told())  # fmt: skip
        if not self.alone:
            self.owner.tell_item(self.item, "done")

    def _part(self, text: str) -> Event:
        """As content_part events tell it: their types are audio and text."""
        return part("audio" if self.settings.modality == "audio" else "text", text)

    def _place(self) -> Event:
        return {"response_id": self.id, "item_id": self.item.id, "output_index": 0,
                "content_index": 0}  # fmt: skip

    def told(self) -> Event:
        """The response object."""
        details: Event | None = None
        if self.status in ("cancelled", "incomplete", "failed"):
            details = {"type": self.status}
            if self.reason:
                details["reason"] = self.reason
            if self.failure is not None:
                details["error"] = self.failure
        (read, clips, text), spoken = self.tokens, len(self.item.speech_tokens)
        return {
            "object": "realtime.response", "id": self.id, "status": self.status,
            "status_details": details,
            "conversation_id": None if self.alone else self.owner.conversation_id,
            "output": [self.item.told()] if self.begun and not self.is_active else [],
            "output_modalities": [self.settings.modality], "max_output_tokens": "inf",
            "audio": {"output": self.settings.output()}, "metadata": self.metadata,
            "usage": {
                "total_tokens": read + text + spoken, "input_tokens": read,
                "output_tokens": text + spoken,
                "input_token_details": {
                    "text_tokens": read - clips, "audio_tokens": clips, "cached_tokens": 0},
                "output_token_details": {"text_tokens": text, "audio_tokens": spoken},
            },
            **({"x_osum": self.perception} if self.perception else {}),
        }  # fmt: skip

    def _own_event(self, kind: str, **more: Any) -> None:
        if self.settings.own_events:
            self._send(kind, response_id=self.id, item_id=self.item.id, **more)

    def _send(self, kind: str, **more: Any) -> None:
        self.owner.send({"type": kind, **more})
