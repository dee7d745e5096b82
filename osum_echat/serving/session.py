"""Conversations: what may be asked, who answers in which voice, and how a reply is stopped."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osum_echat import logs
from osum_echat.errors import CheckpointError, InputError
from osum_echat.inference.reply import LABEL_FIELDS, Done, Event, Reply
from osum_echat.records import Turn, Utterance
from osum_echat.serving.strings import Refused
from osum_echat.tasks import TASKS, Task, task_for, understanding_tag

if TYPE_CHECKING:
    from osum_echat.inference.assistant import EChat

WAV_NAME = "recording"
MEGABYTE = 1 << 20              # as Gradio counts them
THINKING = ("label", "natural")
OWN_VOICE = ""                  # the name of the model's own
MOST_VOICES = 32                # of recordings, that are kept measured
WORDS = "words"                 # beside the labels: the transcript
LABELS = (*LABEL_FIELDS, "style")
HEARABLE = (WORDS, *LABELS)
FIRST_TASK = "s2s_think"
LOG = logs.logger(__name__)


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

    def ask(self, assistant: "EChat", question: Question) -> Generator[Event, None, None]:
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
        self, assistant: "EChat", question: Question, task: Task, run: threading.Event
    ) -> Generator[Event, None, None]:
        prompted = task.takes_prompt and question.text.strip()
        utterance = Utterance(
            key="question", task=question.task, user=_user(question, task),
            history=self.history if question.remembers and task.is_dialogue else (),
        )  # fmt: skip
        events = assistant.stream(
            utterance, prompt=question.text.strip() if prompted else None,
            thinking=question.thinking if task.thinks else None, greedy=question.greedy,
            seed=question.seed, hear=question.hear and task.is_dialogue, interrupt=run.is_set,
        )  # fmt: skip
        try:
            for event in events:
                if isinstance(event, Done) and run is self._run and task.is_dialogue:
                    self._remember(question, event.reply)
                yield event
        finally:
            run.set()
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _remember(self, question: Question, reply: Reply) -> None:
        """Keep the turn, the oldest going first; one without words is not kept."""
        if not reply.text or reply.heard == "":
            return
        turn = Turn(question.clip, reply.heard, reply.text, reply.speech_tokens)
        self.history = (*self.history, turn)[-self.limits.turns :]


def check(question: Question, task: Task, limits: Limits) -> None:
    """Raise Refused, in one line, for what is missing, too long, too large or not a sound."""
    if task.hears:
        _check_clip(question, limits)
    elif not question.text.strip():
        raise Refused("no_text")
    if (found := len(question.text)) > limits.text_characters:
        raise Refused("long_text", found=found, most=limits.text_characters)


def _check_clip(question: Question, limits: Limits) -> None:
    from osum_echat import audio

    clip, name = question.clip, question.name
    if clip is None:
        raise Refused("no_clip")
    found, most = (f"{size / MEGABYTE:.4g}" for size in (len(clip), limits.audio_bytes))
    if len(clip) > limits.audio_bytes:
        raise Refused("large_clip", name=name, found=found, most=most)
    try:
        samples = audio.length(clip, where=name)
        if samples <= limits.audio_s * audio.SAMPLE_RATE_HZ:  # by its header, which may be wrong
            samples = len(audio.read(clip, where=name).samples)
    except InputError as error:
        raise Refused("bad_clip", detail=error) from error
    seconds = samples / audio.SAMPLE_RATE_HZ
    if seconds > limits.audio_s:
        raise Refused("long_clip", name=name, found=f"{seconds:.1f}", most=f"{limits.audio_s:g}")


def _user(question: Question, task: Task) -> Turn:
    """The user's own turn of the utterance."""
    if task.hears:
        return Turn(question.clip)
    words = question.text.strip()
    return Turn(reply_text=words) if task.speaks else Turn(text=words)


@dataclass(frozen=True, slots=True)
class MenuItem:
    """One line of the page's menu. tag: a task's name or tag, with all labels where some may be
    ticked; takes_prompt: beside the clip."""

    name: str
    tag: str
    picks_labels: bool = False
    takes_prompt: bool = False

    @property
    def task(self) -> Task:
        return task_for(self.tag)

    @property
    def reads(self) -> bool:
        """True where the text box is used."""
        return self.takes_prompt or not self.task.hears


_TASKS = sorted((task for task in TASKS.values() if task.in_menu),
                key=lambda task: (not task.speaks, not task.thinks))  # fmt: skip
MENU = {item.name: item for item in (
    *(MenuItem(task.name, task.name) for task in _TASKS if task.hears),
    MenuItem("listen", understanding_tag(LABELS, True), picks_labels=True),
    MenuItem("asr_punctuation", "<TRANSCRIBE> <PUNCTUATION>"),
    MenuItem("asr_align", "<TRANSCRIBE> <ALIGN>"),
    MenuItem("asr_reply", "<TRANSCRIBE> <S2TCHAT>"),
    MenuItem("caption", "<CAPTION> <AUDIO>"),
    MenuItem("free", "<TRANSCRIBE>", takes_prompt=True),
    *(MenuItem(task.name, task.name) for task in _TASKS if not task.hears),
)}  # fmt: skip


def tag_of(name: str, ticked: Sequence[str]) -> str:
    """The task tag of a menu item; ticked: what to listen for, of HEARABLE.

    Raises InputError for an item that is not there, Refused for nothing ticked.
    """
    if name not in MENU:
        raise InputError(f"task {name!r}: not one of {', '.join(MENU)}")
    if not MENU[name].picks_labels:
        return MENU[name].tag
    wanted = tuple(label for label in LABELS if label in ticked)
    if not wanted and WORDS not in ticked:
        raise Refused("no_label")
    return understanding_tag(wanted, WORDS in ticked)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model to choose, and the kind of thought that it is asked for."""

    name: str
    assistant: "EChat"
    thinking: str | None        # None: as the model does by itself

    @property
    def kind(self) -> str:
        """How it thinks: label, natural, or either where the model does not tell."""
        return self.thinking or self.assistant.thinking


def load_models(
    sources: Sequence[str], voices: Sequence[Path], **options: Any
) -> tuple[tuple[ServedModel, ...], "Voices"]:
    """Load the models, sharing what is equal, and measure the voices.

    sources: of one or two models; options: further ones of `EChat.load`. A model without a voice
    of its own speaks in the first of `voices`. Raises CheckpointError and InputError.
    """
    from osum_echat.inference.assistant import EChat

    loaded: dict[str, EChat] = {}
    for source in sources:
        LOG.info("loading %s", source)
        first = next(iter(loaded.values()), None)
        try:
            assistant = EChat.load(source, share=first, **options)
        except CheckpointError:
            if not voices:
                raise
            assistant = EChat.load(source, share=first, **{**options, "voice": voices[0]})
        name, number = Path(source).stem, 2
        while name in loaded:
            name, number = f"{Path(source).stem} ({number})", number + 1
        loaded[name] = assistant
    return served(loaded), Voices(loaded.values(), voices)


def served(models: "Mapping[str, EChat]") -> tuple[ServedModel, ...]:
    """Each model once, or once for each kind of thought that it can be told to think."""
    return tuple(
        ServedModel(name, assistant, kind)
        for name, assistant in models.items()
        for kind in (THINKING if assistant.thinking == "both" else (None,))
    )


def chosen(models: Sequence[ServedModel], numbers: Sequence[int], thinks: bool) -> list[int]:
    """The models to ask, of those ticked; once where no thought tells two of them apart.

    Raises Refused when none is ticked.
    """
    picked: dict[tuple[str, str | None], int] = {}
    for number in numbers:
        if 0 <= number < len(models):
            one = models[number]
            picked.setdefault((one.name, one.thinking if thinks else None), number)
    if not picked:
        raise Refused("no_model")
    return list(picked.values())


class Voices:
    """Assistants by the voice that they speak in: their own, those of files, or a recording's."""

    def __init__(self, assistants: "Iterable[EChat]", files: Sequence[Path]) -> None:
        self.names = (OWN_VOICE, *(str(file) for file in files))
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[int, str], EChat] = OrderedDict()
        for assistant in assistants:
            for file in files:
                self.recorded(assistant, file)

    def named(self, assistant: "EChat", name: str) -> "EChat":
        """The assistant in one of the given voices. Raises InputError for a name never given."""
        if name not in self.names:
            raise InputError(f"voice {name!r}: not one of those given by --voice")
        return assistant if name == OWN_VOICE else self.recorded(assistant, Path(name))

    def recorded(self, assistant: "EChat", file: Path) -> "EChat":
        """The assistant in the voice of a recording, which is measured once. Raises InputError
        where there is none."""
        is_given = str(file) in self.names
        name = str(file) if is_given else hashlib.sha256(file.read_bytes()).hexdigest()
        wanted = (id(assistant), name)
        with self._lock:
            if wanted not in self._made:
                speech = assistant.model.voice
                if speech is None:
                    raise InputError("the model was loaded without speech")
                voice = speech.in_voice(speech.voice_of(str(file)))
                self._made[wanted] = type(assistant)(
                    replace(assistant.model, voice=voice), assistant.seed
                )
            self._made.move_to_end(wanted)
            if len(self._made) > MOST_VOICES:
                self._made.popitem(last=False)
            return self._made[wanted]
