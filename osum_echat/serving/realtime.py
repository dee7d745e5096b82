"""One live session: the protocol's events in, sound and words out, the user free to break in.

A session holds no model and no task of another session; all that is dear (the assistant, voice
activity, the threads) belongs to the Service that made it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from osum_echat.serving import protocol
from osum_echat.serving.audio_formats import encode_file
from osum_echat.serving.items import Item, answer, read_item, spoken_task, turns
from osum_echat.serving.live_metrics import LiveMetrics
from osum_echat.serving.protocol import Event, EventError, SessionSettings, make_id, part
from osum_echat.serving.reply_stream import Generation, Playout, ReplyStream, Transcriber
from osum_echat.serving.session import Conversation, Limits
from osum_echat.serving.turns import LONGEST_TURN_S, RATE_HZ, Listener, Turn

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat
    from osum_echat.serving.turns import TurnModel, VoiceActivity

MOST_ITEMS, MOST_REPLIES = 1000, 4      # of a conversation; under way at once
LEAST_COMMIT_S = 0.1


@dataclass(slots=True)
class Service:
    """What sessions share."""

    assistant: "EChat"
    model: str
    activity: "VoiceActivity"
    turn_model: "TurnModel | None"
    pool: ThreadPoolExecutor
    metrics: LiveMetrics
    voice: str = "default"
    limits: Limits = field(default_factory=Limits)
    record: Callable[[str, int, Item, ReplyStream], None] | None = None
    playout: Playout = field(default_factory=Playout)


class RealtimeSession:
    """The state of one connection. `handle` takes client events; `send` gets the server's."""

    def __init__(
        self, service: Service, send: Callable[[Event], None], query: Mapping[str, str],
        given: Event | None = None,
    ) -> None:  # fmt: skip
        """query: of the URL; model is echoed, x_osum=events asks for our own events too; given:
        settings to begin with."""
        self.service, self._send_out = service, send
        self.id, self.conversation_id = make_id("sess"), make_id("conv")
        self.expires_at = int(time.time()) + protocol.LONGEST_SESSION_S
        self.settings = SessionSettings(
            query.get("model") or service.model, service.voice,
            own_events=query.get("x_osum") == "events",
        ).merged(given or {}, service.turn_model is not None)
        self.items: list[Item] = []
        self.reply: ReplyStream | None = None           # of the conversation, the newest
        self.replies: set[ReplyStream] = set()          # all that are under way
        self.listener = Listener(
            service.activity, self.settings.input_format.rate_hz, self.settings.turn,
            self._plays, self._on_turn, self._failed,
        )  # fmt: skip
        self.buffer = self.listener.buffer
        self.begin = 0                  # of what the next commit takes
        self.speech_item = ""           # id of the turn that is being spoken
        self.continued: Item | None = None      # the one before, if it goes on in that
        self.prepared: Generation | None = None         # of a reply begun at a short pause
        self.prepared_clip = b""
        self.stopped_at = 0.0           # monotonic: the user's last turn ended
        self.recorded = 0               # replies
        self.transcriber = Transcriber(self)
        self._idle: asyncio.TimerHandle | None = None   # begins a reply where nobody speaks

    # What goes out

    def start(self) -> None:
        """The first events of a connection."""
        session = self.settings.session(self.id, self.expires_at)
        self.send({"type": "session.created", "session": session})
        self.send({"type": "conversation.created", "conversation": {
            "id": self.conversation_id, "object": "realtime.conversation"}})  # fmt: skip

    def send(self, event: Event) -> None:
        """Give an event its id and pass it on."""
        self._send_out({**event, "event_id": make_id("event")})

    async def close(self) -> None:
        """Stop all that works for this session, and wait for it."""
        self._drop_prepared()
        self.transcriber.stop()
        self.listener.task.cancel()
        for reply in self.replies:
            reply.cancel("client_cancelled")
        self._wait_idle(None)
        await asyncio.wait([self.listener.task, *(reply.task for reply in self.replies)])

    # What comes in

    def handle(self, text: str | bytes) -> None:
        """Take one client event; what is wrong with it is told in an `error` event."""
        event: Event = {}
        try:
            event = protocol.read_object(text, "an event")
            protocol.check_event(event)
            HANDLERS[event["type"]](self, event)
        except Exception as error:
            self._failed(error, event.get("event_id"))

    def _failed(self, error: Exception, event_id: object = None) -> None:
        told = protocol.client_error(error, f"session {self.id}")
        self.service.metrics.errors.labels(told.code).inc()
        self.send(protocol.error_event(told, event_id))

    def _update(self, event: Event) -> None:
        before = self.settings
        self.settings = before.merged(event["session"], self.service.turn_model is not None)
        if self.settings.input_format != before.input_format:
            self.listener.use_rate(self.settings.input_format.rate_hz)
        if self.settings != before:
            self._drop_prepared()
        if self.settings.turn != before.turn:
            self._wait_idle(None)
            detector = self.listener.detector
            self.begin = detector.start_sample if detector.in_turn else self.buffer.end
            self.listener.use_turn(self.settings.turn)
        session = self.settings.session(self.id, self.expires_at)
        self.send({"type": "session.updated", "session": session})

    def _append(self, event: Event) -> None:
        samples = self.settings.input_format.decode(protocol.decode_audio(event["audio"]))
        count = self.listener.push(samples, self.settings.half_duplex and self._plays())
        self.service.metrics.audio_in.inc(count / RATE_HZ)
        self.service.metrics.input_lag.set(self.listener.lag_s)
        if self.settings.turn is not None:
            return
        most_s = self.service.limits.audio_s
        if self.buffer.end - self.begin > most_s * RATE_HZ:
            self.begin = self.buffer.end
            raise EventError("audio_too_long", f"input_audio_buffer: over {most_s:g} s without a "
                             "commit; it is cleared")  # fmt: skip
        self.buffer.drop_before(self.begin)

    def _commit(self, event: Event) -> None:
        if self.settings.turn is not None:
            if self.listener.detector.in_turn:       # legal: the client knows that the user is done
                self._end_turn(self.buffer.end, respond=False)
                self.listener.clear()
            else:
                self.send({"type": "input_audio_buffer.cleared"})
            return
        self.listener.use_rate(self.settings.input_format.rate_hz)
        if self.buffer.end - self.begin < LEAST_COMMIT_S * RATE_HZ:
            raise EventError("input_audio_buffer_commit_empty",
                             "input_audio_buffer: less than 100 ms to commit")  # fmt: skip
        self._add_turn(make_id("item"), self._wav(self.begin, self.buffer.end))
        self.begin = self.buffer.end

    def _clear(self, event: Event) -> None:
        self._drop_prepared()
        self.begin = self.buffer.end
        self.listener.clear()
        self.send({"type": "input_audio_buffer.cleared"})

    def _create_item(self, event: Event) -> None:
        given = event["item"]
        places: dict[str | None, int] = {one.id: at for at, one in enumerate(self.items, 1)}
        if given.get("id") in places:
            raise EventError("item_create_duplicate_item_id",
                             f"item.id {given['id']}: there is one already")  # fmt: skip
        if len(self.items) >= MOST_ITEMS:
            raise EventError("too_many_items", f"over {MOST_ITEMS} items in a conversation")
        before = event.get("previous_item_id")
        places |= {None: len(self.items), "root": 0}
        if before not in places:
            raise EventError("item_not_found", f"previous_item_id {before}: no such item")
        item = read_item(given, self.settings)
        self._drop_prepared()       # it does not know of this
        self.items.insert(places[before], item)
        self.tell_item(item, "added", "done")

    def _retrieve(self, event: Event) -> None:
        item = self._item(event["item_id"], "item_retrieve_invalid_item_id")
        self.send({"type": "conversation.item.retrieved", "item": item.told()})

    def _delete(self, event: Event) -> None:
        item = self._item(event["item_id"], "item_delete_invalid_item_id")
        if self.reply is not None and self.reply.item is item:
            self.reply.cancel("client_cancelled")
        self._drop_prepared()
        self.items.remove(item)
        if self.continued is item:
            self.continued = item.continues
        for one in self.items:
            if one.continues is item:
                one.continues = item.continues
        self.send({"type": "conversation.item.deleted", "item_id": item.id})

    def _truncate(self, event: Event) -> None:
        item = self._item(event["item_id"], "item_truncate_invalid_item_id")
        if item.role != "assistant":
            raise EventError("item_truncate_invalid_item_id",
                             f"item {item.id}: only replies are truncated")  # fmt: skip
        audio_ms = max(0, int(event["audio_end_ms"]))
        reply = self.reply
        if reply is not None and reply.item is item:
            reply.cancel("client_cancelled")
            reply.first_sent, reply.sent_samples = 0.0, 0   # it plays no longer
        self._drop_prepared()
        item.truncate(audio_ms)
        self.send({"type": "conversation.item.truncated", "item_id": item.id,
                   "content_index": event["content_index"], "audio_end_ms": audio_ms})  # fmt: skip

    def _respond(self, event: Event) -> None:
        given = event.get("response") or {}
        alone = given.get("conversation") == "none"
        own = {name: given[name] for name in ("output_modalities", "audio") if name in given}
        settings = self.settings.merged(own, self.service.turn_model is not None)
        if not alone and self.reply is not None and self.reply.is_active:
            raise EventError("conversation_already_has_active_response", f"response "
                             f"{self.reply.id} is under way; cancel it or wait")  # fmt: skip
        if len(self.replies) >= MOST_REPLIES:
            raise EventError("too_many_responses",
                             f"response.create: {MOST_REPLIES} are under way; wait")  # fmt: skip
        items = self.items
        if given.get("input") is not None:
            items = [self._referred(one) for one in given["input"]]
        words = given.get("instructions") or ""
        reply = self._begin_response(
            items, settings, words, alone=alone, metadata=given.get("metadata")
        )
        reply.open_soon()

    def _cancel(self, event: Event) -> None:
        wanted = event.get("response_id")
        for reply in self.replies:
            if reply.is_active and (reply is self.reply if wanted is None else reply.id == wanted):
                reply.cancel("client_cancelled")
                return
        raise EventError("response_cancel_not_active",
                         "Cancellation failed: no active response found")  # fmt: skip

    def _clear_output(self, event: Event) -> None:
        if self.reply is not None:
            self.reply.cancel("client_cancelled")

    def _item(self, number: str, code: str) -> Item:
        for item in self.items:
            if item.id == number:
                return item
        raise EventError(code, f"item {number}: no such item in the conversation")

    def _referred(self, given: Mapping[str, Any]) -> Item:
        if given.get("type") == "item_reference":
            return self._item(str(given.get("id")), "item_not_found")
        return read_item(given, self.settings)

    # Turns

    async def _on_turn(self, turn: Turn, end: int) -> None:
        settings = self.listener.detector.settings
        match turn:
            case Turn.STARTED:
                self._wait_idle(None)
                reply, self.continued = self.reply, None
                if settings.interrupt_response and reply is not None and self._plays():
                    self.service.metrics.interrupts.inc()
                    self.continued = None if reply.was_noticed else reply.asked
                    reply.cancel("turn_detected")
                self.speech_item = make_id("item")
                self._read_ahead()
                start_ms = self.listener.detector.start_sample * 1000 // RATE_HZ
                self.send({"type": "input_audio_buffer.speech_started",
                           "item_id": self.speech_item, "audio_start_ms": start_ms})  # fmt: skip
            case Turn.PAUSED:
                await self._at_pause(end)
            case Turn.RESUMED:
                self._drop_prepared()
            case Turn.ENDED:
                self._end_turn(end, respond=settings.create_response)

    def _read_ahead(self) -> None:
        """The turns so far are read while nobody waits for it."""
        history = turns(self.items)[-self.service.limits.turns :]
        task = spoken_task(self.settings.modality, self.settings.thinking)
        self.service.pool.submit(self.service.assistant.expect, history, task)

    async def _at_pause(self, end: int) -> None:
        """Prepare a reply in the hope that the turn is over; ask the turn model whether it is."""
        model, start = self.service.turn_model, self.listener.detector.start_sample
        is_busy = self.reply is not None and self.reply.is_active
        if self.listener.detector.settings.create_response and not is_busy:
            self._drop_prepared()
            self.prepared_clip = self._wav(start, end)
            item = Item("user", [part("input_audio", None)], clip=self.prepared_clip,
                        continues=self.continued)  # fmt: skip
            self.prepared = self._generation([*self.items, item], self.settings, "")
        if self.listener.detector.settings.kind == "semantic_vad" and model is not None:
            samples = self.buffer.cut(start, end)
            self.listener.detector.complete = await asyncio.to_thread(model.is_complete, samples)

    def _end_turn(self, end: int, respond: bool) -> None:
        start, prepared = self.listener.detector.start_sample, self.prepared
        self.prepared = None
        self.listener.end_turn()
        self.stopped_at = time.monotonic()
        clip = self.prepared_clip if prepared is not None else self._wav(start, end)
        self.send({"type": "input_audio_buffer.speech_stopped", "item_id": self.speech_item,
                   "audio_end_ms": end * 1000 // RATE_HZ})  # fmt: skip
        self._add_turn(self.speech_item, clip, self.continued)
        self.begin = end
        if not respond or (self.reply is not None and self.reply.is_active):
            if prepared is not None:
                prepared.stop()
            return
        self._begin_response(self.items, self.settings, prepared=prepared,
                             found_by=self.listener.detector.settings.kind)  # fmt: skip

    def _wait_idle(self, until: float | None) -> None:
        """Begin a reply so long after that monotonic second, if nobody speaks; None: do not."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        wait_ms = self.listener.detector.settings.idle_timeout_ms
        if until is not None and wait_ms and self.listener.detector.settings.kind == "server_vad":
            left = max(0.0, until - time.monotonic())
            begin = self.buffer.end + round(left * RATE_HZ)
            self._idle = asyncio.get_running_loop().call_later(
                left + wait_ms / 1000, self._time_out, begin
            )

    def _time_out(self, begin: int) -> None:
        """The user has said nothing for too long: the silence is a turn, and is answered."""
        end, number = self.buffer.end, make_id("item")
        self.send({"type": "input_audio_buffer.timeout_triggered", "item_id": number,
                   "audio_start_ms": min(begin, end) * 1000 // RATE_HZ,
                   "audio_end_ms": end * 1000 // RATE_HZ})  # fmt: skip
        self._add_turn(number, self._wav(begin, end))
        self._begin_response(self.items, self.settings)

    def _add_turn(self, number: str, clip: bytes, continues: Item | None = None) -> None:
        item = Item("user", [part("input_audio", None)], number, clip=clip, continues=continues)
        before = self.items[-1].id if self.items else None
        self.items.append(item)
        clips = [one for one in self.items if one.clip]
        for old in clips[: -self.service.limits.turns - 1]:
            old.clip = None         # too old to be heard again: its words are enough
        self.send({"type": "input_audio_buffer.committed", "item_id": number,
                   "previous_item_id": before})  # fmt: skip
        self.tell_item(item, "added", "done")
        self.transcriber.look()

    def _wav(self, start: int, end: int) -> bytes:
        longest = round(min(self.service.limits.audio_s, LONGEST_TURN_S) * RATE_HZ)
        samples = self.buffer.cut(max(start, end - longest), end)
        samples = np.pad(samples, (0, max(0, round(LEAST_COMMIT_S * RATE_HZ) - len(samples))))
        return encode_file(samples, RATE_HZ, "wav")

    def _drop_prepared(self) -> None:
        if self.prepared is not None:
            self.prepared.stop()
            self.prepared = None

    def _plays(self) -> bool:
        """A reply is being made, or what was sent of it is still playing."""
        reply = self.reply
        return reply is not None and (reply.is_active or time.monotonic() < reply.plays_until)

    # Replies

    def _generation(
        self, items: list[Item], settings: SessionSettings, words: str
    ) -> Generation:
        conversation = Conversation(self.service.limits)
        events = answer(self.service.assistant, conversation, items, settings.modality,
                        settings.thinking, words)  # fmt: skip
        return Generation(events, conversation, self.service.pool, self.service.playout,
                          tells_thoughts=settings.own_events)  # fmt: skip

    def _begin_response(
        self, items: list[Item], settings: SessionSettings, words: str = "", *,
        prepared: Generation | None = None, alone: bool = False, **options: Any,
    ) -> ReplyStream:  # fmt: skip
        """words: answered where no user item is among the items; options: of a ReplyStream."""
        generation = prepared or self._generation(list(items), settings, words)
        own = () if alone or items is not self.items else reversed(items)
        asked = next((one for one in own if one.role == "user"), None)
        reply = ReplyStream(self, generation, settings, alone=alone, asked=asked, **options)
        if not alone:
            self._wait_idle(None)
            self.reply = reply
        self.replies.add(reply)
        reply.task.add_done_callback(lambda _: self.replies.discard(reply))
        return reply

    # What a reply tells its session

    def before(self, item: Item) -> str | None:
        """The id of the item before one."""
        places = [number for number, one in enumerate(self.items) if one is item]
        return self.items[places[0] - 1].id if places and places[0] else None

    def tell_item(self, item: Item, *kinds: str) -> None:
        """Tell of an item of the conversation. kinds: added, done."""
        for kind in kinds:
            self.send({"type": f"conversation.item.{kind}", "item": item.told(),
                       "previous_item_id": self.before(item)})  # fmt: skip

    def words_known(self, item: Item, text: str) -> None:
        """The words of a turn are known; told once, where the client wants a transcription."""
        events = item.transcribed(text)
        for event in events if self.settings.transcription is not None else ():
            self.send(event)

    def perceived(self, reply: ReplyStream, perception: Event, is_new: bool) -> None:
        """What was heard in the user's voice is known. is_new: for the first time."""
        item = reply.asked
        if item is None:
            return
        item.perception = perception
        if self.settings.own_events and is_new:
            self.send({"type": "osum.perception", "item_id": item.id, "response_id": reply.id,
                       **perception})  # fmt: skip

    def first_audio(self, reply: ReplyStream) -> None:
        """The first sound of a reply leaves."""
        if self.stopped_at:
            self.service.metrics.first_audio.observe(time.monotonic() - self.stopped_at)
            self.stopped_at = 0.0

    def finished(self, reply: ReplyStream) -> None:
        """A response has ended, however."""
        self.service.metrics.responses.labels(reply.status).inc()
        if reply is self.reply:
            self._wait_idle(reply.plays_until)
            if reply.status == "completed":
                self._read_ahead()
        self.transcriber.look()
        if (record := self.service.record) is not None and reply.asked is not None:
            self.recorded += 1
            self.service.pool.submit(record, self.id, self.recorded, reply.asked, reply)


HANDLERS: dict[str, Callable[[RealtimeSession, Event], None]] = {
    "session.update": RealtimeSession._update,
    "input_audio_buffer.append": RealtimeSession._append,
    "input_audio_buffer.commit": RealtimeSession._commit,
    "input_audio_buffer.clear": RealtimeSession._clear,
    "conversation.item.create": RealtimeSession._create_item,
    "conversation.item.retrieve": RealtimeSession._retrieve,
    "conversation.item.delete": RealtimeSession._delete,
    "conversation.item.truncate": RealtimeSession._truncate,
    "response.create": RealtimeSession._respond,
    "response.cancel": RealtimeSession._cancel,
    "output_audio_buffer.clear": RealtimeSession._clear_output,
}
