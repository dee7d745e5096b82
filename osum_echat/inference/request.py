"""One call of the assistant, all its options settled against the task and the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from osum_echat import audio, logs
from osum_echat.data.prepare import clean
from osum_echat.errors import InputError
from osum_echat.generation.decoder import Answer, Limits
from osum_echat.generation.kv_cache import check_length
from osum_echat.generation.logits_rules import AllowedAfter, Rule
from osum_echat.generation.sampling import PRESETS
from osum_echat.inference.load import Parts
from osum_echat.inference.reply import LABEL_FIELDS
from osum_echat.inference.reply_parser import Answering, Reading, Reciting, Understanding
from osum_echat.records import Turn, Utterance
from osum_echat.sequence import Clip, compose
from osum_echat.sequence import Sequence as Row
from osum_echat.tasks import Task, task_for, understanding_tag
from osum_echat.thinking import VALUES, opening

DEFAULT_TASK = "s2s_think"
LIMITS = Limits(text_tokens=1000, total_tokens=2000)
LONGEST_TURN_S = 30             # of a question that is answered; listening alone goes on for longer
TOKENS_PER_S, MORE_TOKENS = 20, 60      # more than any transcript and its labels have
AGES = tuple(f"<{age}>" for age in sorted(VALUES["age"]))
Source = Utterance | Path | bytes | str

LOG = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may say; None: as the utterance, the task or the model has it.

    labels: what `understand` is asked for; speak: False stops after the text.
    """

    task: str | None = None
    labels: Sequence[str] = ()
    prompt: str | None = None
    thinking: str | None = None
    greedy: bool = False
    speak: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One call, all its options settled."""

    task: Task
    fields: tuple[str, ...]     # the labels wanted of an understanding task
    utterance: Utterance
    prompt: str | None
    kind: str | None            # of thought: label or natural
    opening: str | None         # the first words of the answer, given to the model
    speaks: bool
    greedy: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A request laid out for the model, and the answer that will grow."""

    request: Request
    row: Row
    answer: Answer
    reading: Reading
    audio_in_s: float | None


def settle(parts: Parts, source: Source, options: Options) -> Request:
    """Settle the options of a call. Raises InputError for what does not fit together."""
    name = options.task or (source.task if isinstance(source, Utterance) else DEFAULT_TASK)
    task, kind = task_for(name), options.thinking
    if task.name == "s2s" and isinstance(source, Utterance) and source.history:
        task = task_for("s2s_history")
    understands = task.name == "understand"
    if options.labels:
        task = _labelled(name, options.labels)
    if options.prompt is not None and not understands:
        raise InputError(f"prompt: task {name} takes none; use an understanding task")
    if kind is not None and not task.thinks:
        raise InputError(f"thinking: task {name} does not think; use s2s_think or s2t_think")
    if task.thinks:
        kind = _kind(parts, kind)
    if task.speaks and options.speak and parts.voice is None:
        raise InputError(f"task {name} speaks, but the model was loaded with speaks=False")
    fields = task.labels
    if understands and options.prompt is None:
        task = _known(parts, task)
    manner = parts.manner
    return Request(
        task, fields, _utterance(source, task), kind=kind, greedy=options.greedy,
        prompt=(options.prompt or parts.prompts.first(task.tag)) if understands else None,
        opening=opening(kind, manner.template) if kind and manner.thinking == "both" else None,
        speaks=task.speaks and options.speak,
    )  # fmt: skip


def lay_out(parts: Parts, request: Request, seed: int) -> Asked:
    """The row that the model sees, and how it shall answer. Raises InputError, DataError."""
    task, utterance = request.task, request.utterance
    clips, seconds = _clips(parts, request)
    row = compose(
        task, parts.vocab, clips=clips, history=utterance.history, opening=request.opening,
        user_text=request.prompt if task.hears else words(task, utterance),
        key=utterance.key or "request",
    )  # fmt: skip
    check_length(parts.network.llm, len(row))
    text = parts.manner.text or PRESETS[task.name]
    speech = parts.manner.speech or PRESETS[task.name]
    if request.greedy:
        text, speech = replace(text, greedy=True), replace(speech, greedy=True)
    answer = Answer(
        # A task that must not speak now ends with its text; interleaved, both go on together.
        replace(task, speaks=task.speaks and (request.speaks or task.interleaved)), parts.vocab,
        text, _rules(parts, request), _limits(request, seconds),
        torch.Generator(parts.network.device).manual_seed(seed), speech,
    )  # fmt: skip
    return Asked(request, row, answer, _reading(parts, request), seconds)


def _reading(parts: Parts, request: Request) -> Reading:
    if not request.task.answers_text:
        return Reciting(words(request.task, request.utterance))
    if request.task.name == "understand":
        return Understanding(request.task, request.fields)
    return Answering(parts.manner.template)


def _rules(parts: Parts, request: Request) -> tuple[Rule, ...]:
    """A label thought must name a real age, once: models may have learnt unknown ones."""
    rules: tuple[Rule, ...] = () if parts.manner.text_loop is None else (parts.manner.text_loop,)
    if request.kind != "label":
        return rules
    cue = parts.manner.template.cues[0].lstrip(",")
    return (*rules, AllowedAfter(*parts.vocab.choices_after(cue, AGES)))


def _limits(request: Request, seconds: float | None) -> Limits:
    """A transcript can be no longer than what can be said in the clip's time."""
    if not request.task.transcript or seconds is None:
        return LIMITS
    most = int(TOKENS_PER_S * seconds) + MORE_TOKENS
    return Limits(most, most)


def _known(parts: Parts, task: Task) -> Task:
    """The understanding task itself, or the full one where the model has no prompt for it."""
    full = task_for("understand")
    is_part = set(task.labels) < set(full.labels) and task.labels
    has_prompt = parts.prompts.first(task.tag) or not parts.prompts.first(full.tag)
    return full if is_part and not has_prompt else task


def _kind(parts: Parts, wanted: str | None) -> str:
    """The kind of thought to think: the one asked for, if the model can."""
    able = parts.manner.thinking
    if able in ("both", "either"):
        return wanted or "label"
    if wanted not in (None, able):
        raise InputError(f"thinking {wanted}: this model thinks in the {able} way only")
    return able


def _clips(parts: Parts, request: Request) -> tuple[list[Clip], float | None]:
    """The features of earlier turns and of the user's own, and the length of the latter."""
    turns = [turn for turn in request.utterance.history if turn.audio is not None]
    if request.task.hears:
        turns.append(request.utterance.user)
    clips: list[Clip] = []
    seconds = None
    for turn in turns:
        assert turn.audio is not None
        samples = audio.load(turn.audio, segment_s=turn.segment_s)
        seconds = len(samples) / audio.SAMPLE_RATE_HZ
        if seconds > LONGEST_TURN_S and request.task.name != "understand":
            name = turn.audio if isinstance(turn.audio, Path) else "audio"
            raise InputError(
                f"{name}: {seconds:.0f} s of audio; task {request.task.name} takes up to "
                f"{LONGEST_TURN_S} s a turn: cut it, or use asr or understand (up to "
                f"{audio.LONGEST_S // 60} minutes)"
            )
        clips.append(audio.log_mel(samples, parts.network.settings.encoder.mels))
    return clips, seconds if request.task.hears else None


def _labelled(name: str, labels: Sequence[str]) -> Task:
    """The understanding task that asks for these labels. Raises InputError for another task."""
    if name != "understand":
        raise InputError(f"labels: task {name} takes none; use task understand")
    for label in labels:
        if label not in LABEL_FIELDS:
            raise InputError(f"labels: {label!r} is not one of {', '.join(LABEL_FIELDS)}")
    return task_for(understanding_tag(tuple(labels)))


def _utterance(source: Source, task: Task) -> Utterance:
    """The source as an utterance of this task. Raises InputError where it does not fit."""
    if isinstance(source, Utterance):
        utterance = source
    elif task.hears:
        clip = Path(source) if isinstance(source, str) else source
        utterance = Utterance("", task.tag, Turn(clip))
    elif isinstance(source, str):
        utterance = Utterance("", task.tag, Turn(reply_text=source), prompt=source)
    else:
        raise InputError(f"task {task.name} reads: give it a text, not a sound file")
    if task.hears and utterance.user.audio is None:
        raise InputError(f"task {task.name} hears: give it a sound file")
    if not task.hears and not words(task, utterance).strip():
        raise InputError(f"task {task.name} reads: give it a text that is not empty")
    return utterance


def words(task: Task, utterance: Utterance) -> str:
    """What a task without sound reads: the words to speak, or the question."""
    if task.speaks:
        return clean(utterance.user.reply_text or "")
    return clean(utterance.prompt or utterance.user.text or "")
