"""What the assistant gives back: a whole reply, or its events one by one while it is made.

The text of a reply is parsed while it grows: thought, labels, words; never half a character.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from osum_echat import thinking
from osum_echat.records import LIST_KEYS, Labels, canonical_label
from osum_echat.tasks import Task
from osum_echat.vocab import Vocab

if TYPE_CHECKING:
    from torch import Tensor

    from osum_echat.generation.decoder import StoppedBy

HALF_CHARACTER = "\ufffd"  # what a tokenizer gives for bytes that are no whole character yet
_STYLE = re.compile(r"<([^<>]+)>\s*")
_OPEN_STYLE = re.compile(r"<[^<>]*")
NO_LABELS = Labels()
_END_MARKS = ("think end>", "/think end>", "/think>")
# What is told of a voice, in this order; the style is the reply's.
LABEL_FIELDS = ("emotion", *(name for name in LIST_KEYS if name not in ("emotion", "style")))


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds after the call of `reply` (load_s: of the load before); None: it did not happen."""

    load_s: float
    encode_s: float | None
    prefill_s: float | None
    first_text_s: float | None
    first_speech_token_s: float | None
    first_audio_s: float | None
    total_s: float


class Timer:
    """When things first happened, in seconds after the call."""

    def __init__(self, load_s: float, start: float | None = None) -> None:
        """start: of the call, by time.perf_counter; None: now."""
        self._load_s = load_s
        self._start = time.perf_counter() if start is None else start
        self._firsts: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Note that it happened, the first time."""
        if name not in self._firsts:
            self._firsts[name] = time.perf_counter() - self._start

    def timings(self, hears: bool) -> Timings:
        """hears: the prompt held audio."""
        ready, first = self._firsts.get("prompt"), self._firsts.get("token")
        return Timings(
            load_s=self._load_s, encode_s=ready if hears else None,
            prefill_s=None if ready is None or first is None else first - ready,
            first_text_s=self._firsts.get("text"), first_speech_token_s=self._firsts.get("speech"),
            first_audio_s=self._firsts.get("audio"), total_s=time.perf_counter() - self._start,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """All that came of one utterance. wave: (samples,), None for a task that does not speak."""

    task: str
    heard: str | None           # the user's words, where the task's own output holds them
    thought: str | None
    labels: Labels
    text: str
    speech_tokens: tuple[int, ...]
    wave: "Tensor | None" = field(repr=False)
    sample_rate_hz: int | None
    audio_in_s: float | None
    timings: Timings
    prompt_tokens: int = 0
    clip_tokens: int = 0                # of the prompt
    text_tokens: int = 0                # the thought and its marks are among them
    stopped_by: "StoppedBy" = "end"       # limit: it found no end; interrupt: it was not to go on

    @property
    def audio_out_s(self) -> float | None:
        if self.wave is None or not self.sample_rate_hz:
            return None
        return len(self.wave) / self.sample_rate_hz


@dataclass(frozen=True, slots=True)
class Heard:
    """The user's words; "" where the clip holds none."""

    text: str


@dataclass(frozen=True, slots=True)
class LabelsFound:
    """What is known of the voice, and the style of the reply."""

    labels: Labels


@dataclass(frozen=True, slots=True)
class ThoughtPiece:
    """The next characters of the thought; all pieces put together are `Reply.thought`."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next characters of the reply; all pieces put together are `Reply.text`."""

    text: str


@dataclass(frozen=True, slots=True)
class AudioPiece:
    """The next samples, (samples,) float32 on the CPU; all put together are `Reply.wave`."""

    samples: "Tensor" = field(repr=False)
    sample_rate_hz: int


@dataclass(frozen=True, slots=True)
class Done:
    """The last event: the whole reply, or what there is of it after an interrupt."""

    reply: Reply


Event = Heard | LabelsFound | ThoughtPiece | TextPiece | AudioPiece | Done


class Detokenizer:
    """Ids to text, piece by piece; the pieces are the text of all ids together."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.ids: list[int] = []
        self._start = self._given = 0  # ids before `given` are out; `start` is where that began

    def push(self, ids: Iterable[int], is_last: bool = False) -> str:
        """The characters that are whole now; at the end, half a one too."""
        self.ids.extend(ids)
        # Decoded with the ids before: some tokenizers drop a space at the start.
        before = self.vocab.decode(self.ids[self._start : self._given])
        whole = self.vocab.decode(self.ids[self._start :])
        if whole.endswith(HALF_CHARACTER) and not is_last:
            return ""
        self._start, self._given = self._given, len(self.ids)
        return whole[len(before) :]


class UnderstandingParser:
    """The answer of an understanding task: words and labels, e.g. `i lost my kite<CHILD>`."""

    thought = None

    def __init__(self, task: Task, fields: Iterable[str]) -> None:
        """fields: the labels that are wanted, among those that the task asks for."""
        self.task, self.fields = task, tuple(fields)
        self.heard: str | None = None
        self.labels = Labels()
        self.text = self._whole = ""

    def push(self, text: str, is_last: bool = False) -> list[Event]:
        """What the next characters tell, and what only the end tells."""
        self._whole += text
        piece = self._whole.strip()[len(self.text) :]
        self.text += piece
        events: list[Event] = [TextPiece(piece)] if piece else []
        if not is_last:
            return events
        found = asdict(thinking.read_labels(self.text, self.task.labels))
        self.labels = Labels(**{name: found[name] for name in self.fields})
        if self.task.transcript:
            self.heard = thinking.transcript(self.text)
        return events + _told(self.heard, self.labels)


class DialogueParser:
    """The answer of any other task: a thought, if there is one, a style tag, and the words."""

    def __init__(
        self, template: thinking.LabelTemplate, heard: str | None = None, labels: Labels = NO_LABELS
    ) -> None:
        """heard, labels: of the user's turn, where they are known before the answer begins."""
        self.template = template
        self.heard, self.labels = heard, labels
        self.thought: str | None = None
        self.text = self._whole = ""
        self._is_told = heard is None
        self._has_thought = self._in_words = False

    def push(self, text: str, is_last: bool = False) -> list[Event]:
        """What the text so far tells and was not told; space waits for a character after it."""
        told, self._is_told = self._is_told, True
        events = [] if told else [*_told(None, self.labels), *_told(self.heard, NO_LABELS)]
        self._whole += text
        rest = self._whole.lstrip()
        if rest.startswith(thinking.THINK_START):
            rest = rest.removeprefix(thinking.THINK_START)
            end = thinking.THINK_END_MARK.search(rest)
            is_whole = is_last or end is not None
            events += self._think(rest[: end.start() if end else None], is_whole)
            if not is_whole:
                return events
            rest = rest[end.end() :].lstrip() if end else ""
        elif thinking.THINK_START.startswith(rest) and not is_last:
            return events
        # A tag that leads the words is their style; one with nothing after it is a word.
        tag = _STYLE.match(rest)
        if tag is not None and tag.end() < len(rest):
            self.labels = replace(self.labels, style=self.labels.style or canonical_label(tag[1]))
            rest = rest[tag.end() :]
        elif not is_last and (tag or not rest or _OPEN_STYLE.fullmatch(rest)):
            return events
        if not self._in_words:
            self._in_words = True
            events += _told(None, self.labels)
        piece = rest.strip()[len(self.text) :]
        self.text += piece
        return [*events, TextPiece(piece)] if piece else events

    def _think(self, thought: str, is_whole: bool) -> list[Event]:
        """What a thought tells; before its end, what may be the beginning of the mark waits."""
        sure = thought if is_whole else thought[: _before_open_mark(thought)]
        piece = sure.strip()[len(self.thought or "") :]
        self.thought = sure.strip()
        events: list[Event] = [ThoughtPiece(piece)] if piece else []
        if not is_whole or self._has_thought:
            return events
        self._has_thought = True
        heard, labels = thinking.read_thought(self.thought, self.template)
        if self.heard is not None:
            self.labels = replace(self.labels, style=labels.style)
            return events
        self.heard, self.labels = heard, labels
        return [*events, *_told(heard, NO_LABELS)]


class GivenText:
    """The answer of a task that speaks given words: they are known before it begins.

    style: None for the tag that leads the words, if one does.
    """

    thought = None

    def __init__(self, words: str, heard: str | None = None, style: str | None = None) -> None:
        self.text, self.heard = thinking.without_labels(words), heard
        tag = thinking.LEADING_TAG.match(words)
        self.labels = Labels(style=style or (canonical_label(tag[1]) if tag else None))
        self._is_told = False

    def push(self, text: str, is_last: bool = False) -> list[Event]:
        """What the beginning of the answer tells."""
        told, self._is_told = self._is_told, True
        if told:
            return []
        return [*_told(self.heard, NO_LABELS), *([TextPiece(self.text)] if self.text else [])]


ReplyParser = UnderstandingParser | DialogueParser | GivenText     # takes a text as it grows


def _told(heard: str | None, labels: Labels) -> list[Event]:
    found: list[Event] = [] if heard is None else [Heard(heard)]
    return [*found, LabelsFound(labels)] if labels != Labels() else found


def _before_open_mark(text: str) -> int:
    """Where the mark at the end of a thought may have begun in the last characters of a text."""
    start = text.rfind("<")
    begun = text[start + 1 :].lstrip()
    is_open = start >= 0 and any(mark.startswith(begun) for mark in _END_MARKS)
    return start if is_open else len(text)
