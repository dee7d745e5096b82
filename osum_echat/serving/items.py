"""The items of a live conversation: what clients write, what is kept, and how one is answered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from osum_echat.errors import InputError
from osum_echat.records import Turn
from osum_echat.serving import protocol
from osum_echat.serving.audio_formats import Resampler, encode_file
from osum_echat.serving.protocol import Event, SessionSettings, make_id, part
from osum_echat.serving.session import Conversation, Question
from osum_echat.serving.turns import LONGEST_TURN_S, RATE_HZ

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat
    from osum_echat.inference.reply import Event as ReplyEvent

WORD_MS = 300           # that a word takes to say, about


@dataclass(slots=True)
class Item:
    """A message of the conversation. clip: a whole wav of a user's turn; continues: the turn that
    goes on in this one, as no sound of a reply to it was heard."""

    role: str
    parts: list[Event] = field(default_factory=list)
    id: str = field(default_factory=lambda: make_id("item"))
    status: str = "completed"
    clip: bytes | None = None
    speech_tokens: tuple[int, ...] = ()
    audio_ms: int = 0
    perception: Event | None = None
    continues: "Item | None" = None
    other: Mapping[str, Any] | None = None      # an item that is no message, as the client gave it

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(str(one.get("text") or one.get("transcript") or "") for one in self.parts)

    def told(self) -> Event:
        """The protocol's object."""
        if self.other is not None:
            own = {name: one for name, one in self.other.items() if one is not None}
            return {**own, "id": self.id, "object": "realtime.item"}
        own = {} if self.perception is None else {"x_osum": self.perception}
        return {
            "id": self.id, "object": "realtime.item", "type": "message", "role": self.role,
            "status": self.status, "content": [dict(one) for one in self.parts], **own,
        }  # fmt: skip

    @property
    def sound(self) -> Event | None:
        """The part that was spoken, of a user's turn; its transcript is None until it is known."""
        return next((one for one in self.parts if self.clip and "transcript" in one), None)

    def transcription(self, name: str, **more: Any) -> Event:
        """The event of that name about its transcription."""
        return {"type": f"conversation.item.input_audio_transcription.{name}", "item_id": self.id,
                "content_index": 0, **more}  # fmt: skip

    def transcribed(self, words: str) -> list[Event]:
        """Take the words of the turn. Returns the events that tell them; none if they are known."""
        if self.sound is None or self.sound["transcript"] is not None:
            return []
        self.sound["transcript"] = words
        seconds = len(self.clip or b"") / 2 / RATE_HZ
        own = {} if self.perception is None else {"x_osum": self.perception}
        return [
            self.transcription("delta", delta=words),
            self.transcription("completed", transcript=words, **own,
                               usage={"type": "duration", "seconds": round(seconds, 3)}),
        ]  # fmt: skip

    def truncate(self, audio_ms: int) -> None:
        """Keep what was heard of a spoken reply: its first part, cut between words.

        The words of a reply that was cut short are ahead of its sound.
        """
        words = sum(len(str(one.get("transcript") or "").split(" ")) for one in self.parts)
        whole_ms = self.audio_ms
        if self.status != "completed":
            whole_ms = max(whole_ms, WORD_MS * words)
        audio_ms = min(audio_ms, self.audio_ms)
        if audio_ms >= whole_ms:
            return
        share = audio_ms / whole_ms
        for one in self.parts:
            if "transcript" in one:
                told = str(one["transcript"] or "").split(" ")
                one["transcript"] = " ".join(told[: round(share * len(told))])
        self.speech_tokens = self.speech_tokens[: round(share * len(self.speech_tokens))]
        self.audio_ms, self.status = audio_ms, "incomplete"


def read_item(given: Mapping[str, Any], settings: SessionSettings) -> Item:
    """An item that a client wrote. Sound in it has the session's input format."""
    number = given.get("id") or make_id("item")
    if given.get("type") != "message":
        return Item("", id=number, other=given)
    item = Item(str(given["role"]), id=number)
    for one in given.get("content") or ():
        kind = str(one.get("type"))
        if kind == "input_audio" and one.get("audio"):
            form = settings.input_format
            samples = form.decode(protocol.decode_audio(one["audio"]))
            heard = Resampler(form.rate_hz, RATE_HZ).push(samples, last=True)
            item.clip = encode_file(heard, RATE_HZ, "wav")
        if kind != "input_image":
            text = one.get("transcript") if kind.endswith("audio") else one.get("text")
            item.parts.append(part(kind, text))
    return item


def answer(
    assistant: "EChat", conversation: Conversation, items: Sequence[Item], modality: str,
    thinking: str, words: str,
) -> "Iterator[ReplyEvent]":  # fmt: skip
    """The events of a reply to the last user item, Done last.

    modality: audio or text; thinking: label, natural or none; words: what is answered where no user
    item is there. Raises InputError, at the first step, for nothing to answer.
    """
    asked = next((n for n in range(len(items) - 1, -1, -1) if items[n].role == "user"), None)
    item = None if asked is None else items[asked]
    text = words if item is None else item.text
    if item is not None and item.clip:
        said = whole(item)
        earlier = [one for one in items[:asked] if one not in said]
        conversation.history = turns(earlier)[-conversation.limits.turns :]
        question = Question(
            spoken_task(modality, thinking), clip=joined(said, conversation.limits.audio_s),
            thinking=None if thinking == "none" else thinking, hear=thinking != "label",
        )  # fmt: skip
        yield from conversation.ask(assistant, question)
        return
    if not text.strip():
        raise InputError("nothing to answer: no user item is in the conversation")
    yield from _written(assistant, conversation, text, modality)


def spoken_task(modality: str, thinking: str) -> str:
    """The task that answers speech. modality, thinking: as in `answer`."""
    base = "s2s" if modality == "audio" else "s2t"
    return base if thinking == "none" else f"{base}_think"


def _written(
    assistant: "EChat", conversation: Conversation, text: str, modality: str
) -> "Iterator[ReplyEvent]":
    """A written question is answered in text; where sound is wanted, that text is spoken."""
    from osum_echat.inference.reply import AudioPiece, Done

    written = None
    for event in conversation.ask(assistant, Question("t2t", text=text)):
        if isinstance(event, Done):
            written = event.reply
        else:
            yield event
    assert written is not None, "a reply without an end"
    if modality == "text" or written.stopped_by == "interrupt" or not written.text.strip():
        yield Done(written)
        return
    for event in conversation.ask(assistant, Question("tts", text=written.text)):
        if isinstance(event, AudioPiece):
            yield event
        elif isinstance(event, Done):
            yield Done(replace(
                written, speech_tokens=event.reply.speech_tokens, wave=event.reply.wave,
                sample_rate_hz=event.reply.sample_rate_hz, stopped_by=event.reply.stopped_by,
            ))  # fmt: skip


def turns(items: Sequence[Item]) -> tuple[Turn, ...]:
    """Earlier exchanges, the oldest first: a user's item and the reply that followed it."""
    continued = [one.continues for one in items if one.continues is not None]
    found, asked = [], None
    for item in items:
        if item.role == "user":
            asked = None if item in continued else item
        elif item.role == "assistant" and asked is not None and item.text.strip():
            said = whole(asked)
            texts, clip = [one.text for one in said], joined(said)
            text = " ".join(filter(None, texts)) if all(texts) or not clip else ""
            if clip or text:
                found.append(Turn(clip, text or None, item.text, item.speech_tokens))
            asked = None
    return tuple(found)


def whole(item: Item) -> list[Item]:
    """A turn and those that go on in it, the first first."""
    return [*(() if item.continues is None else whole(item.continues)), item]


def joined(said: Sequence[Item], longest_s: float = LONGEST_TURN_S) -> bytes | None:
    """The sound of turns as one wav; the last of them where all would be longer."""
    from osum_echat import audio

    clips = [one.clip for one in said if one.clip]
    if len(clips) < 2:
        return clips[0] if clips else None
    samples = [audio.load(clip).numpy() for clip in clips]
    while len(samples) > 1 and sum(map(len, samples)) > longest_s * RATE_HZ:
        del samples[0]
    return encode_file(np.concatenate(samples), RATE_HZ, "wav")
