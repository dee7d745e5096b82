"""The words of a live session: OpenAI Realtime (GA) events checked, settings merged, items told.

Source: the types of the `openai` package (3.57); the order and the quirks of stock clients are in
docs/online.md.
"""

import base64
import binascii
import json
import reprlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, get_args

from osum_echat.errors import InputError
from osum_echat.logs import logger
from osum_echat.serving.audio_formats import FORMATS, WireFormat

Event = dict[str, Any]
LONGEST_SESSION_S = 3600
MOST_AUDIO_BYTES = 3 << 20              # of an event, decoded from base64: a minute
# Settings that are taken, told back and used by nothing here.
UNUSED = ("tools", "tool_choice", "parallel_tool_calls", "max_output_tokens", "truncation",
          "prompt", "reasoning", "tracing", "instructions")  # fmt: skip
DEFAULTS: Event = {
    "output_modalities": ["audio"], "instructions": "", "tools": [], "tool_choice": "auto",
    "max_output_tokens": "inf", "truncation": "auto", "tracing": None,
}  # fmt: skip

LOG = logger(__name__)


class EventError(InputError):
    """What a client sent and cannot be used. status: over HTTP; a live session goes on."""

    def __init__(
        self, code: str, message: str, param: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.code, self.param, self.status = code, param, status

    def told(self) -> Event:
        """The protocol's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        param = {"param": self.param} if self.param else {}
        return {"type": kind, "code": self.code, "message": str(self), **param}


def invalid(param: str, value: object, need: str) -> EventError:
    """A value that cannot be used. param: its place; need: what would do."""
    return EventError("invalid_value", f"{param} {reprlib.repr(value)}: {need}", param)


def client_error(error: Exception, where: str) -> EventError:
    """Any error as clients are told it: what is not theirs goes to the log, with where it was."""
    if isinstance(error, EventError):
        return error
    if isinstance(error, InputError):
        return EventError("invalid_value", str(error))
    LOG.error("%s", where, exc_info=error)
    message = "the server failed; its log says why"
    return EventError("server_error", message, status=500)


def make_id(kind: str) -> str:
    """A new id: sess_, conv_, item_, resp_, event_ and 20 random characters."""
    return f"{kind}_{secrets.token_hex(10)}"


def read_object(text: str | bytes, what: str) -> Event:
    """The JSON object that a client sent. Raises EventError for anything else."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EventError("invalid_json", f"{what} must be JSON: {error}") from error
    if not isinstance(raw, dict):
        raise EventError("invalid_json", f"{what} must be a JSON object")
    return raw


def check_event(raw: Event) -> None:
    """Raises EventError for a client event that is not of its type."""
    kind = raw.get("type")
    known = client_events()
    if not isinstance(kind, str) or kind not in known:
        raise EventError(
            "unknown_or_invalid_event", f"type {kind!r}: not one of {', '.join(known)}", "type"
        )
    checked = {**raw}
    if kind == "session.update" and isinstance(raw.get("session"), dict):
        checked["session"] = {"type": "realtime"}   # its settings are merged one by one
    if kind == "response.create" and isinstance(raw.get("response"), dict):
        checked["response"] = {
            name: value for name, value in raw["response"].items() if name not in UNUSED
        }
    _validate(known[kind], checked, kind)


@cache
def client_events() -> dict[str, Any]:
    """The types of all client events by name."""
    from openai.types.realtime import RealtimeClientEvent

    union = get_args(RealtimeClientEvent)[0]
    return {get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(union)}


def _validate(kind: Any, value: Any, where: str) -> Any:
    from pydantic import ValidationError

    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise EventError("invalid_value", f"{where}: {path}: {first['msg']}", path) from error


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """turn_detection of a session. kind: server_vad or semantic_vad."""

    kind: str = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = None
    eagerness: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise invalid("turn_detection.threshold", self.threshold, "need 0 to 1")
        for name, most in (("prefix_padding_ms", 5000), ("silence_duration_ms", 10_000)):
            if not 0 <= getattr(self, name) <= most:
                raise invalid(f"turn_detection.{name}", getattr(self, name), f"need 0 to {most}")

    def told(self) -> Event:
        """The object that a session tells."""
        own = ("eagerness",) if self.kind == "semantic_vad" else (
            "threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms")  # fmt: skip
        names = ("create_response", "interrupt_response", *own)
        return {"type": self.kind, **{name: getattr(self, name) for name in names}}


def decode_audio(text: str, most_bytes: int = MOST_AUDIO_BYTES) -> bytes:
    """Raises EventError for what is no base64, or too much of it."""
    if len(text) > most_bytes * 4 // 3 + 4:
        raise EventError("audio_too_large", f"audio: over {most_bytes >> 20} MB at once")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EventError("invalid_base64", f"audio: not base64 ({error})", "audio") from error


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The effective settings of a session. told: what nothing uses, as the client gave it."""

    model: str
    voice: str
    input_format: WireFormat = FORMATS["audio/pcm"]
    output_format: WireFormat = FORMATS["audio/pcm"]
    turn: TurnSettings | None = field(default_factory=TurnSettings)
    transcription: Mapping[str, Any] | None = None
    noise_reduction: Mapping[str, Any] | None = None
    speed: float = 1.0
    modality: str = "audio"
    thinking: str = "label"             # before a reply: label, natural or none
    half_duplex: bool = False           # what is heard while the reply plays is dropped
    own_events: bool = False            # osum.* events beside the protocol's
    told: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    ignored: tuple[str, ...] = ()

    def merged(self, given: Mapping[str, Any], has_turn_model: bool) -> "SessionSettings":
        """With the settings that an update has. Raises EventError for what cannot be.

        A model, voice or name that is not ours is taken without an error: stock clients send some.
        """
        if given.get("type") == "transcription":
            raise invalid("session.type", "transcription", "sessions here give replies; "
                          "/v1/audio/transcriptions writes down what was said")  # fmt: skip
        told, ignored = dict(self.told), set(self.ignored)
        for name in UNUSED:
            if name in given:
                told[name] = given[name]
                used = given[name] in (None, "", [], DEFAULTS.get(name), "auto")
                ignored = ignored - {name} if used else ignored | {name}
        audio = mapping(given.get("audio"), "session.audio")
        heard = mapping(audio.get("input"), "session.audio.input")
        spoken = mapping(audio.get("output"), "session.audio.output")
        changed: dict[str, Any] = {}
        if "output_modalities" in given:
            wanted = told["output_modalities"] = given["output_modalities"]
            if wanted not in (["audio"], ["text"]):
                raise invalid("output_modalities", wanted, "need ['audio'] or ['text']")
            (changed["modality"],) = wanted
        if "format" in heard:
            changed["input_format"] = _format(heard["format"], "session.audio.input.format")
        if "format" in spoken:
            changed["output_format"] = _format(spoken["format"], "session.audio.output.format")
        for name in ("transcription", "noise_reduction"):
            if name in heard:
                changed[name] = heard[name]
        if "turn_detection" in heard:
            changed["turn"] = _turn(heard["turn_detection"], self.turn, has_turn_model)
        if (speed := spoken.get("speed")) is not None:
            if not isinstance(speed, int | float) or not 0 < speed < 100:
                raise invalid("audio.output.speed", speed, "need a number")
            changed["speed"] = float(speed)
            ignored = ignored - {"speed"} if speed == 1 else ignored | {"speed"}
        changed |= _own(mapping(given.get("x_osum"), "session.x_osum"))
        return replace(self, told=told, ignored=tuple(sorted(ignored)), **changed)

    def session(self, number: str, expires_at: int) -> Event:
        """The session object, whole."""
        detection = None if self.turn is None else self.turn.told()
        return {
            "type": "realtime", "object": "realtime.session", "id": number,
            "expires_at": expires_at, "model": self.model, **self.told,
            "audio": {
                "input": {
                    "format": self.input_format.settings(), "transcription": self.transcription,
                    "noise_reduction": self.noise_reduction, "turn_detection": detection,
                },
                "output": self.output(),
            },
            "x_osum": {
                "thinking": self.thinking, "half_duplex": self.half_duplex,
                "events": self.own_events, "ignored": list(self.ignored),
            },
        }  # fmt: skip

    def output(self) -> Event:
        """The sound of replies, as session and responses tell it."""
        return {"format": self.output_format.settings(), "voice": self.voice, "speed": self.speed}


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """An object, empty for None. Raises EventError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(where, value, "need an object")
    return value


def _format(value: Any, where: str) -> WireFormat:
    name = value.get("type") if isinstance(value, dict) else value
    found = FORMATS.get(str(name))
    rate = value.get("rate") if isinstance(value, dict) else None
    if found is None or rate not in (None, found.rate_hz):
        pcm_hz = FORMATS["audio/pcm"].rate_hz
        raise invalid(where, value, f"not one of {', '.join(FORMATS)}; audio/pcm has rate {pcm_hz}")
    return found


def _turn(value: Any, before: TurnSettings | None, has_model: bool) -> TurnSettings | None:
    from openai.types.realtime.realtime_audio_input_turn_detection import SemanticVad, ServerVad

    given = mapping(value, "turn_detection")
    if value is None:
        return None
    kind = given.get("type", before.kind if before else "server_vad")
    if kind not in ("server_vad", "semantic_vad"):
        raise invalid("turn_detection.type", kind, "need server_vad or semantic_vad")
    checked = _validate(ServerVad if kind == "server_vad" else SemanticVad,
                        {**given, "type": kind}, "turn_detection")  # fmt: skip
    if kind == "semantic_vad" and not has_model:
        kind = "server_vad"     # said in session.updated
    known = TurnSettings.__dataclass_fields__
    own = {name: one for name, one in checked.model_dump(exclude_unset=True).items()
           if name in known and (one is not None or name == "idle_timeout_ms")}  # fmt: skip
    start = before if before is not None and before.kind == kind else TurnSettings(kind)
    return replace(start, **own, kind=kind)


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if given.get("thinking") in ("label", "natural", "none"):
        changed["thinking"] = given["thinking"]
    for name, own in (("half_duplex", "half_duplex"), ("events", "own_events")):
        if isinstance(given.get(name), bool):
            changed[own] = given[name]
    return changed


def part(kind: str, text: str | None) -> Event:
    """A part of an item's content; one of sound always tells its transcript."""
    return {"type": kind, ("transcript" if kind.endswith("audio") else "text"): text}


def error_event(error: EventError, event_id: object = None) -> Event:
    """The protocol's error; `error.event_id` names the client event that it answers."""
    own = {"event_id": event_id} if isinstance(event_id, str) else {}
    return {"type": "error", "error": {**error.told(), **own}}
