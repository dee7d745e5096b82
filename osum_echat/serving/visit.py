"""A browser tab's visit: the form it hands in, the turns on show, and the answers as they grow."""

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat.errors import InputError, OsumError
from osum_echat.serving import menu, view
from osum_echat.serving.feedback import FeedbackBook
from osum_echat.serving.lanes import OWN_VOICE, Lane, Voices, who_answers
from osum_echat.serving.session import Conversation, Limits, Question, check
from osum_echat.serving.view import ReplyView, TurnView
from osum_echat.tasks import task_for

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat
    from osum_echat.inference.reply import Event, Reply

TICK_S = 0.1                    # text is shown this often at most; sound and ends at once
MOST_VISITS = 500               # beyond it the visit that was quiet longest is forgotten
MOST_TURNS = 40                 # on show; the oldest goes


@dataclass(frozen=True, slots=True)
class Order:
    """What the form holds when it is sent."""

    task: str = menu.FIRST
    ticked: tuple[str, ...] = menu.HEARABLE     # what to listen for
    lanes: tuple[int, ...] = (0,)
    clip: Path | None = None
    text: str = ""
    voice: str = OWN_VOICE
    voice_clip: Path | None = None              # a recording to speak like, before `voice`
    remembers: bool = True
    hear: bool = False
    greedy: bool = False
    seed: int = 0


@dataclass(slots=True)
class Visit:
    """What is kept for one tab. A conversation for each lane, so that columns do not mix."""

    limits: Limits
    turns: list[TurnView] = field(default_factory=list)
    conversations: dict[int, Conversation] = field(default_factory=dict)
    answered: dict[str, tuple[Question, "Reply", str]] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)     # verdicts, by reply

    def conversation(self, lane: int) -> Conversation:
        return self.conversations.setdefault(lane, Conversation(self.limits))

    def interrupt(self) -> None:
        """Stop every answer under way."""
        for conversation in self.conversations.values():
            conversation.interrupt()

    def reset(self) -> None:
        """Begin anew."""
        for conversation in self.conversations.values():
            conversation.reset()
        self.turns, self.answered, self.given = [], {}, {}

    def show(self, turn: TurnView) -> None:
        """Add a turn; the oldest beyond MOST_TURNS goes, with what was kept to judge it by."""
        self.turns.append(turn)
        for old in self.turns[:-MOST_TURNS]:
            for reply in old.replies:
                self.answered.pop(reply.key, None)
        del self.turns[:-MOST_TURNS]

    def shown(self) -> list[dict[str, Any]]:
        """The turns as JSON."""
        return [turn.values() for turn in self.turns]


class Desk:
    """Who answers, within which limits, and where opinions go. One for the whole page."""

    def __init__(
        self, lanes: Sequence[Lane], voices: Voices, limits: Limits, feedback: FeedbackBook
    ) -> None:
        self.lanes, self.voices, self.limits, self.feedback = lanes, voices, limits, feedback
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def visit(self, name: str) -> Visit:
        """The visit of that name, a new one where there is none."""
        with self._lock:
            found = self._visits.pop(name, None) or Visit(self.limits)
            self._visits[name] = found
            while len(self._visits) > MOST_VISITS:
                self._visits.popitem(last=False)[1].interrupt()
            return found

    def leave(self, name: str) -> None:
        """The tab was closed: stop its answers and forget it."""
        with self._lock:
            gone = self._visits.pop(name, None)
        if gone is not None:
            gone.interrupt()

    def answer(self, visit: Visit, order: Order) -> Iterator[dict[str, Any]]:
        """Answer the form in every lane chosen, a step of each by turns.

        The visit's turns grow; each time there is something new, the page's player is given.
        Raises InputError before the first picture where the form cannot be answered; what goes
        wrong later is told in the reply that it concerns.
        """
        question = _question(order)
        task = task_for(question.task)
        check(question, task, self.limits)
        numbers = who_answers(self.lanes, order.lanes, task.thinks)
        speakers = [self._speaker(self.lanes[number], order, task.speaks) for number in numbers]
        run = uuid.uuid4().hex[:12]
        turn = _turn(order, question, task.hears)
        with ExitStack() as stack:
            streams: dict[str, Iterator[Event]] = {}
            for number, speaker in zip(numbers, speakers, strict=True):
                lane = self.lanes[number]
                asked = replace(question, thinking=lane.thinking if task.thinks else None)
                events = visit.conversation(number).ask(speaker, asked)
                stack.enter_context(closing(events))
                reply = ReplyView(f"{run}-{number}", lane.model, lane.manner, task.speaks)
                if not task.thinks:
                    reply.manner = ""
                turn.replies.append(reply)
                streams[reply.key] = events
            visit.show(turn)
            yield view.player(run, (), ())
            yield from _grow(visit, turn, streams, run, question)

    def judge(self, visit: Visit, key: str, verdict: str, note: str) -> None:
        """Save an opinion on a reply. Raises InputError for a reply that is no longer there."""
        if key not in visit.answered:
            raise InputError("that reply is no longer here; ask again")
        question, reply, model = visit.answered[key]
        self.feedback.add(verdict, note, question, reply, model)
        visit.given[key] = verdict

    def _speaker(self, lane: Lane, order: Order, speaks: bool) -> "EChat":
        """The lane's assistant in the voice that was asked for."""
        if not speaks:
            return lane.assistant
        if order.voice_clip is not None:
            return self.voices.recorded(lane.assistant, order.voice_clip)
        return self.voices.named(lane.assistant, order.voice)


def _question(order: Order) -> Question:
    """The form as a question. Raises InputError for a choice that is not in the menu."""
    tag = menu.tag_of(order.task, order.ticked)
    choice = menu.MENU[order.task]
    clip = order.clip if choice.hears else None
    return Question(
        tag, clip.read_bytes() if clip else None, clip.name if clip else "",
        order.text if choice.reads else "", remembers=order.remembers, hear=order.hear,
        greedy=order.greedy, seed=order.seed,
    )  # fmt: skip


def _turn(order: Order, question: Question, hears: bool) -> TurnView:
    turn = TurnView(order.task, question.text)
    if hears and question.clip is not None:
        from osum_echat import audio

        turn.clip, turn.name = str(order.clip), question.name
        turn.hear(*audio.decode(question.clip, question.name))
    return turn


def _grow(
    visit: Visit, turn: TurnView, streams: "dict[str, Iterator[Event]]", run: str,
    question: Question,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Take an event of each stream by turns until all have ended, and say when to show it."""
    from osum_echat.inference.reply import AudioPiece, Done

    pieces: list[dict[str, Any]] = []
    ended: list[str] = []
    told_at = time.monotonic()
    while len(ended) < len(turn.replies):
        for reply in turn.replies:
            if reply.key in ended:
                continue
            event = _next(streams[reply.key], reply)
            if event is not None:
                reply.take(event)
            if isinstance(event, AudioPiece):
                pieces.append(view.piece(reply.key, event.samples, event.sample_rate_hz))
            if isinstance(event, Done):
                asked = replace(question, thinking=reply.manner or None)
                visit.answered[reply.key] = asked, event.reply, reply.model
            if event is None or isinstance(event, Done):
                ended.append(reply.key)
            at_once = event is None or isinstance(event, AudioPiece | Done)
            if at_once or time.monotonic() - told_at > TICK_S:
                told_at = time.monotonic()
                yield view.player(run, pieces, ended)


def _next(events: "Iterator[Event]", reply: ReplyView) -> "Event | None":
    """The next event; None at the end, which is told in the reply where it is an error."""
    try:
        return next(events)
    except StopIteration:
        reply.state = view.STOPPED
    except OsumError as error:
        reply.fail(str(error))
    return None
