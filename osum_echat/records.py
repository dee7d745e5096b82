"""The record of one conversation: what was heard, said and known about the voice.

Source of the field names: OSUM-EChat's raw jsonl lists (one object a line).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from osum_echat.errors import DataError, InputError

DEFAULT_TASK = "<TRANSCRIBE>"
MISSING_TURN = "-1"             # what lists write for an earlier turn that was lost
_NO_LABEL = {"", "NONE", "NULL", "&&"}
_SPELLINGS = {"YOUTH": "ADULT", "MIDDLE_AGE": "ADULT", "MIDDLE": "ADULT", "ANGRY": "ANGER"}


def canonical_label(raw: str | None) -> str | None:
    """`<youth>` -> `ADULT`: upper case, no brackets, one spelling; None for none-like labels."""
    if raw is None:
        return None
    name = raw.strip().strip("<>").strip().upper()
    return None if name in _NO_LABEL else _SPELLINGS.get(name, name)


def written_label(raw: str | None) -> str | None:
    """A label as its list spells it, without brackets; None for none-like ones."""
    return raw.strip().strip("<>").strip() if raw and canonical_label(raw) else None


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known about a voice, and the style of the reply; None is unknown or not asked.

    thinking.VALUES has the values of each. A new field stands last: these are named by place too.
    """

    age: str | None = None
    gender: str | None = None
    emotion: str | None = None
    event: str | None = None        # OTHER: none
    style: str | None = None        # of the reply: 开心, CHEERFUL ...


# Field of a voice -> its name in a list's `extra`.
LIST_KEYS = {one.name: one.name for one in fields(Labels)} | {
    "emotion": "q_emotion", "event": "caption", "style": "reply_emotion",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: the user's audio or words, and the reply to them."""

    audio: bytes | Path | None = None
    text: str | None = None                     # what the user said, or the written question
    reply_text: str | None = None               # the target text (the text to speak, in TTS)
    reply_speech: tuple[int, ...] = ()          # codes without the edges
    speech_starts: tuple[int, ...] = ()         # codes before each piece of the reply's text
    segment_s: tuple[float, float] | None = None    # the part of the audio that is meant


@dataclass(frozen=True, slots=True)
class Utterance:
    """A user's turn with all that belongs to it. `task` is a tag that `tasks.task_for` knows."""

    key: str
    task: str
    user: Turn
    labels: Labels = field(default_factory=Labels)
    thought: str | None = None
    history: tuple[Turn, ...] = ()
    prompt: str | None = None

    @staticmethod
    def from_json(raw: Mapping[str, Any], where: str, root: Path) -> "Utterance":
        """Read one object of a raw list.

        where: what to call the line in errors; root: the folder that relative wav paths start at.
        A wav may also be the bytes of a sound file, as tars hold it.
        Raises DataError naming the field that cannot be used.
        """
        reader = _Reader(raw, where, root)
        extra = reader.extra
        question = reader.text("question", extra)
        return Utterance(
            key=reader.required("key"),
            task=reader.text("task") or DEFAULT_TASK,
            user=Turn(
                audio=reader.audio("wav"),
                text=reader.text("q_txt", extra) or question,
                reply_text=reader.required("txt"),
                reply_speech=(reader.codes("speech_token", extra)
                              or reader.codes("speech_token", raw)),
                speech_starts=reader.codes("speech_starts", extra),
                segment_s=reader.segment(),
            ),
            labels=Labels(**{
                name: (written_label if name == "event" else canonical_label)(
                    reader.text(key, extra)) for name, key in LIST_KEYS.items()
            }),
            thought=reader.text("think_str", extra),
            history=reader.history(),
            prompt=question,
        )


class _Reader:
    """Typed look-ups in one raw object; every complaint names the line and the field."""

    def __init__(self, raw: Mapping[str, Any], where: str, root: Path):
        if not isinstance(raw, Mapping):
            raise DataError(f"{where}: a {type(raw).__name__}, need a JSON object")
        self.raw, self.where, self.root = raw, where, root
        self.extra = self._extra()

    def _extra(self) -> Mapping[str, Any]:
        extra = self.raw.get("extra")
        if isinstance(extra, str):
            try:
                extra = json.loads(extra)
                json.dumps(extra, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{self.where}: extra is not JSON ({error}); fix or remove it") from error
        if extra is None:
            return {}
        if not isinstance(extra, Mapping):
            raise DataError(f"{self.where}: extra is a {type(extra).__name__}, need an object")
        return extra

    def text(self, name: str, source: Mapping[str, Any] | None = None) -> str | None:
        """The string of that name, None where absent or empty."""
        value = (self.raw if source is None else source).get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {name} is {value!r}, need a string")
        return value or None

    def required(self, name: str) -> str:
        """The string of that name, which must be there (it may be empty)."""
        value = self.raw.get(name)
        if not isinstance(value, str):
            found = "missing" if value is None else repr(value)
            raise DataError(f"{self.where}: {name} is {found}, need a string")
        return value

    def audio(self, name: str) -> bytes | Path | None:
        """The sound of that name: bytes, or a file; a relative path starts at the list's folder."""
        value = self.raw.get(name)
        if isinstance(value, bytes):
            return value
        value = self.text(name)
        return None if value is None else self.root / value

    def codes(self, name: str, source: Mapping[str, Any]) -> tuple[int, ...]:
        """Speech codes, () where absent."""
        value = source.get(name)
        if value is None:
            return ()
        is_list = isinstance(value, list) and set(map(type, value)) <= {int}
        if not is_list or min(value, default=0) < 0:
            raise DataError(f"{self.where}: {name} must be a list of whole numbers from 0")
        return tuple(value)

    def segment(self) -> tuple[float, float] | None:
        """The seconds `start` to `end` of the audio, if given."""
        start, end = self.raw.get("start"), self.raw.get("end")
        if start is None and end is None:
            return None
        if isinstance(start, int | float) and isinstance(end, int | float) and 0 <= start < end:
            return float(start), float(end)
        raise DataError(f"{self.where}: start {start!r} and end {end!r}, "
                        "need seconds, 0 <= start < end")

    def history(self) -> tuple[Turn, ...]:
        """Earlier turns wav_1, txt_1, speech_token_1 ...; () when one of them was lost.

        Earlier clauses of a text to speak have no wav, but speech_starts_1 ...
        """
        numbers = {int(name[4:]) for name in self.raw
                   if name.startswith(("wav_", "txt_")) and name[4:].isdecimal()}
        turns = []
        for number in sorted(numbers):
            reply = self.required(f"txt_{number}")
            codes = self.extra.get(f"speech_token_{number}")
            if MISSING_TURN in (reply, self.raw.get(f"wav_{number}"), codes):
                return ()
            audio = self.audio(f"wav_{number}")
            starts = self.codes(f"speech_starts_{number}", self.extra)
            if audio is None and not starts:
                raise DataError(f"{self.where}: wav_{number} is missing, need a string")
            turns.append(Turn(
                audio=audio,
                text=self.text(f"q_txt_{number}", self.extra),
                reply_text=reply,
                reply_speech=self.codes(f"speech_token_{number}", self.extra),
                speech_starts=starts,
            ))
        return tuple(turns)


# A conversation so far as a file, `dialogue.json`: a list of turns, the oldest first.
#
#     [{"wav": "first.wav", "reply": "Hello, what can I do for you?"},
#      {"text": "who are you?", "reply": "I am OSUM-EChat.", "reply_speech": [12, 7, 7]}]
#
# A turn has what the user said, as a wav (a relative path starts at the file's folder) or as text,
# and the reply; reply_speech, the codes it was spoken in, may be left out.
TURN_KEYS = ("wav", "text", "reply", "reply_speech")


def read_turns(path: Path) -> tuple[Turn, ...]:
    """The turns of a file. Raises InputError naming the turn that cannot be used."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(raw, ensure_ascii=False).encode()  # raises for half a character (\\uD800 ...)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file of earlier turns") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); write a list of turns") from error
    if not isinstance(raw, list):
        raise InputError(f"{path}: a {type(raw).__name__}; write a list of turns")
    return tuple(_turn(one, f"{path}: turn {place}", path.parent) for place, one in
                 enumerate(raw, 1))  # fmt: skip


def _turn(raw: Any, where: str, root: Path) -> Turn:
    if not isinstance(raw, dict) or not set(raw) <= set(TURN_KEYS):
        raise InputError(f"{where}: write an object with {', '.join(TURN_KEYS)}")
    if missing := [name for name, value in raw.items() if value is None]:
        raise InputError(f"{where}: {missing[0]} is null; give it or leave it out")
    reader = _Reader(raw, where, root)
    try:
        turn = Turn(reader.audio("wav"), reader.text("text"), reader.text("reply"),
                    reader.codes("reply_speech", raw))  # fmt: skip
    except DataError as error:
        raise InputError(str(error)) from error
    if turn.audio is None and turn.text is None:
        raise InputError(f"{where}: give what the user said, as wav or as text")
    if turn.reply_text is None:
        raise InputError(f"{where}: give the reply")
    return turn
