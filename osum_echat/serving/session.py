"""One conversation: what was said so far, what may be handed in, and how a reply is stopped."""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from osum_echat.errors import InputError
from osum_echat.records import Turn, Utterance
from osum_echat.tasks import Task, task_for

if TYPE_CHECKING:
    from osum_echat.inference.reply import Event, Reply

WAV_NAME = "recording"
MEGABYTE = 1 << 20             # as Gradio counts them


class Refused(InputError):
    """A question over the limits. `reason` and `values` let a page say it in its own language."""

    def __init__(self, reason: str, message: str, **values: object) -> None:
        super().__init__(message)
        self.reason, self.values = reason, values


class Assistant(Protocol):
    """What a conversation needs of `osum_echat.EChat`."""

    def stream(
        self, source: Utterance, *, prompt: str | None, thinking: str | None, greedy: bool,
        seed: int | None, hear: bool, interrupt: Callable[[], bool] | None,
    ) -> "Iterator[Event]": ...  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What one question may bring, and how many earlier turns a reply knows."""

    audio_s: float = 30.0
    audio_bytes: int = 25 * MEGABYTE
    text_characters: int = 1000
    turns: int = 5                  # as upstream keeps them


@dataclass(frozen=True, slots=True)
class Question:
    """What the user asks for: a task with its sound file or its text, and how to go about it."""

    task: str
    clip: bytes | None = None       # a whole sound file
    name: str = WAV_NAME            # of that file, for messages
    text: str = ""                  # the words of a task that reads, or the prompt of one that may
    thinking: str | None = None     # label or natural; None: as the model does
    remembers: bool = True          # answer with the earlier turns in mind
    hear: bool = False              # ask again for the words where the task does not tell them
    greedy: bool = False
    seed: int | None = None


class Conversation:
    """The turns so far, and the one reply that may be under way.

    It holds no model: each question says who answers, so that a voice may change between turns.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.history: tuple[Turn, ...] = ()
        self._run = threading.Event()   # of the reply under way: set to stop it

    def ask(
        self, assistant: Assistant, question: Question
    ) -> "Generator[Event, None, None]":
        """Answer a question; a reply still under way is stopped.

        Gives the events of `EChat.stream`; Done is last. Closing the iterator stops the reply.
        Raises Refused at once for a question over the limits, other InputErrors as they come.
        """
        task = task_for(question.task)
        check(question, task, self.limits)
        self.interrupt()
        self._run = threading.Event()
        return self._answer(assistant, question, task, self._run)

    def interrupt(self) -> None:
        """Stop the reply under way, if there is one; what there is of it stays."""
        self._run.set()

    def reset(self) -> None:
        """Forget everything; a reply under way is stopped and not remembered."""
        self.interrupt()
        self._run = threading.Event()
        self.history = ()

    def _answer(
        self, assistant: Assistant, question: Question, task: Task, run: threading.Event
    ) -> "Generator[Event, None, None]":
        from osum_echat.inference.reply import Done

        prompted = task.understands and question.text.strip()
        utterance = Utterance(
            key="question", task=question.task, user=_user(question, task),
            history=self.history if question.remembers and is_dialogue(task) else (),
        )  # fmt: skip
        events = assistant.stream(
            utterance, prompt=question.text.strip() if prompted else None,
            thinking=question.thinking if task.thinks else None, greedy=question.greedy,
            seed=question.seed, hear=question.hear and is_dialogue(task), interrupt=run.is_set,
        )  # fmt: skip
        try:
            for event in events:
                if isinstance(event, Done) and run is self._run and is_dialogue(task):
                    self._remember(question, event.reply)
                yield event
        finally:
            run.set()
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _remember(self, question: Question, reply: "Reply") -> None:
        """Keep the turn, the oldest going first; one without a word of reply is not kept."""
        if not reply.text:
            return
        turn = Turn(question.clip, reply.heard, reply.text, reply.speech_tokens)
        self.history = (*self.history, turn)[-self.limits.turns :]


def is_dialogue(task: Task) -> bool:
    """True for the tasks whose turns follow from each other: spoken questions that are answered."""
    return task.hears and task.name != "understand"


def check(question: Question, task: Task, limits: Limits) -> None:
    """Raise Refused, in one line, for what is missing, too long, too large or not a sound."""
    if task.hears:
        _check_clip(question, limits)
    elif not question.text.strip():
        raise Refused("no_text", f"task {task.name} reads: write a text first")
    if len(question.text) > limits.text_characters:
        raise Refused(
            "long_text", f"the text has {len(question.text)} characters; "
            f"shorten it to {limits.text_characters} or fewer",
            found=len(question.text), most=limits.text_characters,
        )  # fmt: skip


def _check_clip(question: Question, limits: Limits) -> None:
    from osum_echat import audio

    if question.clip is None:
        raise Refused("no_clip", "this task hears: record something or choose a sound file first")
    found, most = (f"{size / MEGABYTE:.4g}" for size in (len(question.clip), limits.audio_bytes))
    if len(question.clip) > limits.audio_bytes:
        raise Refused(
            "large_clip",
            f"{question.name}: {found} MB; at most {most} MB, cut it or save it as mp3",
            name=question.name, found=found, most=most,
        )  # fmt: skip
    try:
        samples, rate = audio.decode(question.clip, question.name)
    except InputError as error:
        raise Refused("bad_clip", str(error), detail=str(error)) from error
    seconds = len(samples) / rate
    if seconds > limits.audio_s:
        raise Refused(
            "long_clip", f"{question.name}: {seconds:.1f} s; at most {limits.audio_s:g} s, "
            "cut it or say it in several turns",
            name=question.name, found=f"{seconds:.1f}", most=f"{limits.audio_s:g}",
        )  # fmt: skip


def _user(question: Question, task: Task) -> Turn:
    """The user's own turn of the utterance."""
    if task.hears:
        return Turn(question.clip)
    words = question.text.strip()
    return Turn(reply_text=words) if task.speaks else Turn(text=words)
