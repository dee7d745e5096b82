"""The chat of one browser tab: the form it hands in, its turns, and the answers as they grow."""

import base64
import io
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat.errors import InputError, OsumError
from osum_echat.inference import reply as events
from osum_echat.inference.reply import AudioPiece, Done, Event, Reply
from osum_echat.serving.audio_formats import FORMATS, encode_file
from osum_echat.serving.feedback import Feedback
from osum_echat.serving.session import (
    FIRST_TASK,
    HEARABLE,
    LABELS,
    MENU,
    OWN_VOICE,
    Conversation,
    Limits,
    Question,
    ServedModel,
    Voices,
    chosen,
    tag_of,
)
from osum_echat.tasks import task_for
from osum_echat.thinking import without_labels

if TYPE_CHECKING:
    from torch import Tensor

    from osum_echat.inference.assistant import EChat

PCM = FORMATS["audio/pcm"]
TICK_S = 0.1                    # text is shown this often at most; sound and ends at once
MOST_SESSIONS = 500             # beyond it the session that was quiet longest is forgotten
MOST_TURNS = 40                 # on show; the oldest goes
NO_EVENT = ("event", "OTHER")   # what the lists write where nothing is heard beside the words
WORKING, DONE, STOPPED, FAILED = "working", "done", "stopped", "failed"
WIDEST = 640                    # pixels of a spectrogram: longer ones are averaged over time


@dataclass(frozen=True, slots=True)
class Form:
    """What the page's form holds when it is sent."""

    task: str = FIRST_TASK
    ticked: tuple[str, ...] = HEARABLE          # what to listen for
    models: tuple[int, ...] = (0,)
    clip: Path | None = None
    text: str = ""
    voice: str = OWN_VOICE
    voice_clip: Path | None = None              # a recording to speak like, before `voice`
    remembers: bool = True
    hear: bool = False
    greedy: bool = False
    seed: int = 0


@dataclass(slots=True)
class Answer:
    """One model's answer to a question while it grows. `key` is unique in the page."""

    key: str
    model: str
    kind: str                       # of thought; "" where the task has none
    question: Question
    reply: Reply | None = None      # at its end
    verdict: str = ""
    state: str = WORKING
    heard: str | None = None
    labels: list[tuple[str, str]] = field(default_factory=list)
    thought: str = ""
    text: str = ""
    raw: str | None = None          # what the model wrote, where it is not the text
    problem: str | None = None
    wav: str | None = None
    mel: str | None = None
    timings: dict[str, float] = field(default_factory=dict)

    def take(self, event: Event, folder: Path) -> None:
        """Add what an event tells. folder: of the sound of whole replies."""
        match event:
            case events.Heard(text=text):
                self.heard = text
            case events.LabelsFound(labels=labels):
                self.labels = _told(labels)
            case events.ThoughtPiece(text=text):
                self.thought += text
            case events.TextPiece(text=text):
                self.text += text
            case events.Done(reply=reply):
                self._finish(reply, folder)

    def _finish(self, reply: Reply, folder: Path) -> None:
        self.reply, self.heard, self.labels = reply, reply.heard, _told(reply.labels)
        self.thought, self.text = reply.thought or "", reply.text
        if task_for(reply.task).understands:
            said = reply.text.removeprefix(reply.heard or "")
            self.text, self.raw = without_labels(said), reply.text
            if self.text == reply.heard:
                self.text = ""
        self.state = STOPPED if reply.stopped_by == "interrupt" else DONE
        self.timings = {
            name.removesuffix("_s"): round(seconds, 2)
            for name, seconds in asdict(reply.timings).items()
            if seconds is not None and name != "load_s"
        }
        if reply.wave is not None and reply.sample_rate_hz is not None:
            path = folder / f"reply_{self.key}.wav"
            path.write_bytes(encode_file(reply.wave.numpy(), reply.sample_rate_hz, "wav"))
            self.wav, self.mel = str(path), spectrogram(reply.wave, reply.sample_rate_hz)


@dataclass(slots=True)
class Turn:
    """A question and the answers to it, by the number of the model."""

    task: str                       # of the menu
    answers: dict[int, Answer]
    text: str = ""
    clip: str | None = None         # path of the sound file
    name: str = ""
    seconds: float | None = None
    mel: str | None = None


@dataclass(slots=True)
class Session:
    """What is kept for one tab. A conversation for each model, so that they do not mix."""

    limits: Limits
    turns: deque[Turn] = field(default_factory=lambda: deque(maxlen=MOST_TURNS))
    conversations: dict[int, Conversation] = field(default_factory=dict)

    def conversation(self, model: int) -> Conversation:
        return self.conversations.setdefault(model, Conversation(self.limits))

    def interrupt(self) -> None:
        """Stop every answer under way."""
        for conversation in self.conversations.values():
            conversation.interrupt()

    def reset(self) -> None:
        """Begin anew."""
        for conversation in self.conversations.values():
            conversation.reset()
        self.turns.clear()


class ChatService:
    """Who answers, within which limits, and where feedback goes. One for the whole page."""

    def __init__(
        self, models: Sequence[ServedModel], voices: Voices, limits: Limits, feedback: Feedback,
        folder: Path,
    ) -> None:  # fmt: skip
        """folder: of the sound of replies."""
        self.models, self.voices, self.limits = models, voices, limits
        self.feedback, self.folder = feedback, folder
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def session(self, name: str) -> Session:
        """The session of that name, a new one where there is none."""
        with self._lock:
            found = self._sessions.pop(name, None) or Session(self.limits)
            self._sessions[name] = found
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)[1].interrupt()
            return found

    def leave(self, name: str) -> None:
        """The tab was closed: stop its answers and forget it."""
        with self._lock:
            gone = self._sessions.pop(name, None)
        if gone is not None:
            gone.interrupt()

    def answer(self, session: Session, form: Form) -> Iterator[dict[str, Any]]:
        """Answer the form by every model chosen, an event of each by turns.

        The session's turns grow; each time there is something new, all sound of this run so far is
        given, for player.js. Raises InputError at once where the form cannot be answered; what
        goes wrong later is told in the answer that it concerns.
        """
        question = _question(form)
        task = task_for(question.task)
        numbers = chosen(self.models, form.models, task.thinks)
        speakers = [self._in_voice(self.models[one], form, task.speaks) for one in numbers]
        run, answers = uuid.uuid4().hex[:12], dict[int, Answer]()
        with ExitStack() as stack:
            streams: dict[int, Iterator[Event]] = {}
            for number, speaker in zip(numbers, speakers, strict=True):
                model = self.models[number]
                asked = replace(question, thinking=model.thinking if task.thinks else None)
                streams[number] = session.conversation(number).ask(speaker, asked)
                stack.enter_context(closing(streams[number]))  # type: ignore[type-var]
                kind = model.kind if task.thinks else ""
                answers[number] = Answer(f"{run}-{number}", model.name, kind, asked)
            turn = _turn(form, question, task.hears, answers)
            session.turns.append(turn)
            yield player(run, (), ())
            yield from self._grow(turn, streams, run)

    def judge(self, answer: Answer | None, verdict: str, note: str) -> None:
        """Save a verdict on an answer. Raises InputError for one that has no reply."""
        if answer is None or answer.reply is None:
            raise InputError("that reply is no longer here; ask again")
        self.feedback.add(verdict, note, answer.question, answer.reply, answer.model)
        answer.verdict = verdict

    def _in_voice(self, model: ServedModel, form: Form, speaks: bool) -> "EChat":
        """The model's assistant in the voice that was asked for."""
        if not speaks:
            return model.assistant
        if form.voice_clip is not None:
            return self.voices.recorded(model.assistant, form.voice_clip)
        return self.voices.named(model.assistant, form.voice)

    def _grow(
        self, turn: Turn, streams: dict[int, Iterator[Event]], run: str
    ) -> Iterator[dict[str, Any]]:
        """Take an event of each stream by turns until all have ended, and say when to show it."""
        pieces: list[dict[str, Any]] = []
        ended: list[str] = []
        told_at = time.monotonic()
        while len(ended) < len(turn.answers):
            for number, answer in turn.answers.items():
                if answer.key in ended:
                    continue
                event = _next(streams[number], answer)
                if event is not None:
                    answer.take(event, self.folder)
                if isinstance(event, AudioPiece):
                    pcm = base64.b64encode(PCM.encode(event.samples.numpy())).decode()
                    pieces.append({"reply": answer.key, "rate": event.sample_rate_hz, "pcm": pcm})
                if event is None or isinstance(event, Done):
                    ended.append(answer.key)
                at_once = event is None or isinstance(event, AudioPiece | Done)
                if at_once or time.monotonic() - told_at > TICK_S:
                    told_at = time.monotonic()
                    yield player(run, pieces, ended)


def _question(form: Form) -> Question:
    """The form as a question. Raises InputError for a choice that is not in the menu."""
    tag = tag_of(form.task, form.ticked)
    item = MENU[form.task]
    clip = form.clip if item.task.hears else None
    return Question(
        tag, clip.read_bytes() if clip else None, clip.name if clip else "",
        form.text if item.reads else "", remembers=form.remembers, hear=form.hear,
        greedy=form.greedy, seed=form.seed,
    )  # fmt: skip


def _turn(form: Form, question: Question, hears: bool, answers: dict[int, Answer]) -> Turn:
    turn = Turn(form.task, answers, question.text)
    if hears and question.clip is not None:
        from osum_echat import audio

        sound = audio.read(question.clip, None, where=question.name)
        turn.clip, turn.name = str(form.clip), question.name
        turn.seconds = len(sound.samples) / sound.rate_hz
        turn.mel = spectrogram(sound.samples, sound.rate_hz)
    return turn


def _next(stream: Iterator[Event], answer: Answer) -> Event | None:
    """The next event; None at the end, which is told in the answer where it is an error."""
    try:
        return next(stream)
    except StopIteration:
        answer.state = STOPPED
    except OsumError as error:
        answer.state, answer.problem = FAILED, str(error)
    return None


def _told(labels: Any) -> list[tuple[str, str]]:
    """Field and value of each label that tells something."""
    found = [(name, getattr(labels, name)) for name in LABELS]
    return [(name, label.lower()) for name, label in found if label and (name, label) != NO_EVENT]


def player(run: str, pieces: Sequence[dict[str, Any]], ended: Sequence[str]) -> dict[str, Any]:
    """All sound of a run so far: the page plays what it has not played yet."""
    return {"run": run, "pieces": list(pieces), "ended": list(ended)}


def spectrogram(samples: "Tensor", rate_hz: int) -> str | None:
    """The log-mel features of (samples,) as a PNG, low tones below, in a data: address.

    None for less than a window (25 ms).
    """
    from matplotlib.image import imsave
    from torch.nn.functional import adaptive_avg_pool1d

    from osum_echat import audio

    samples = audio.resample(samples, rate_hz, audio.SAMPLE_RATE_HZ)
    if len(samples) < audio.WINDOW_SAMPLES:
        return None
    mel = audio.log_mel(samples).T                  # (mels, frames)
    mel = adaptive_avg_pool1d(mel, min(WIDEST, mel.shape[1]))
    file = io.BytesIO()
    imsave(file, mel.numpy(), format="png", origin="lower", cmap="inferno")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
