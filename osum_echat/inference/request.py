"""One request: its options checked against task and model, and the prompt that it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from osum_echat import audio, logs
from osum_echat.errors import InputError
from osum_echat.generation.decoder import Answer, Limits
from osum_echat.generation.kv_cache import check_length
from osum_echat.generation.sampling import PRESETS, AllowedAfter, EndsAtCue, Rule
from osum_echat.inference import reply, safety
from osum_echat.inference.load import LoadedModel
from osum_echat.inference.recognizer import Recognition
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.sequence import Clip, compose
from osum_echat.sequence import Sequence as Row
from osum_echat.tasks import UNDERSTAND, Task, task_for, understanding_tag
from osum_echat.thinking import (
    DEFAULT_LABELS,
    THINK_END,
    VALUES,
    clean,
    opening,
    without_labels,
)

DEFAULT_TASK = "s2s_think"
LIMITS = Limits(text_tokens=1000, total_tokens=2000)
LONGEST_TURN_S = 30             # of a question that is answered; listening alone goes on for longer
TOKENS_PER_S, MORE_TOKENS = 20, 60      # more than any transcript and its labels have
SEEDS = range(-(2**63), 2**64)          # that torch's generators take
SILENCE_RMS = 1e-4              # -80 dBFS: three steps of 16 bits, too faint to be anybody's voice
SILENCE_WINDOW_SAMPLES = 400    # 25 ms
NOTHING_HEARD = {               # by name of the template
    "english": "I did not hear anything. Please say it again.",
    "chinese": "我没有听到声音,请再说一遍。",
}
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
    """What is asked of the model, checked: made by `make_request`."""

    task: Task
    fields: tuple[str, ...]     # the labels wanted of an understanding task
    utterance: Utterance
    prompt: str | None
    kind: str | None            # of thought: label or natural
    opening: str | None         # the first words of the answer, given to the model
    speaks: bool
    greedy: bool
    recognition: Recognition | None = None      # where the CTC spells: what was heard


@dataclass(frozen=True, slots=True)
class RequestState:
    """A request while it is answered: its prompt, the tokens that come, and what they say."""

    request: Request
    row: Row
    answer: Answer
    parser: reply.ReplyParser
    audio_in_s: float | None
    seed: int
    timer: reply.Timer
    opening: tuple[int, ...]    # the first ids of the answer, which the prompt ends in
    is_silent: bool             # the user's clip holds no sound

    @property
    def heard(self) -> str | None:
        """The user's words, as the answer tells them, or as they were recognized before it."""
        recognition = self.request.recognition
        if self.parser.heard is not None or recognition is None:
            return self.parser.heard
        return recognition.words


def make_request(model: LoadedModel, source: Source, options: Options) -> Request:
    """Check the options of a call. Raises InputError for what does not fit together."""
    name = options.task or (source.task if isinstance(source, Utterance) else DEFAULT_TASK)
    has_history = isinstance(source, Utterance) and bool(source.history)
    task, kind = dialogue_task(name, has_history), options.thinking
    if options.labels:
        task = _labelled(name, options.labels)
    if options.prompt is not None and not task.takes_prompt:
        raise InputError(f"prompt: task {name} takes none; use an understanding task")
    _check_letters(options.prompt)
    if kind is not None and not task.thinks:
        raise InputError(f"thinking: task {name} does not think; use s2s_think or s2t_think")
    if task.thinks:
        kind = _kind(model, kind)
    if task.speaks and options.speak and model.voice is None:
        raise InputError(f"task {name} speaks, but the model was loaded with speaks=False")
    fields = task.labels
    if task.understands and options.prompt is None:
        task = _known(model, task)
    settings = model.generation
    return Request(
        task, fields, _utterance(source, task), kind=kind, greedy=options.greedy,
        prompt=(options.prompt or model.prompts.first(task.tag)) if task.takes_prompt else None,
        opening=opening(kind, settings.template) if kind and settings.thinking == "both" else None,
        speaks=task.speaks and options.speak,
    )  # fmt: skip


def dialogue_task(name: str, has_history: bool) -> Task:
    """The task of that name or tag; the plain spoken one differs where earlier turns are told."""
    task = task_for(name)
    return task_for("s2s_history") if task.name == "s2s" and has_history else task


def prepare(model: LoadedModel, request: Request, seed: int, timer: reply.Timer) -> RequestState:
    """Lay the prompt out, and how it shall be decoded. Raises InputError, DataError."""
    if seed not in SEEDS:
        raise InputError(f"seed {seed}: give a whole number of up to 18 digits")
    history = read_again(model, request.utterance.history)
    request = replace(request, utterance=replace(request.utterance, history=history))
    task, utterance = request.task, request.utterance
    turns = [*history, *([utterance.user] if task.hears else [])]
    clips, seconds, is_silent = _clips(model, task, turns)
    if model.network.settings.ctc is not None and task.hears and not is_silent:
        request, clips, is_silent = _recognized(model, request, clips)
    row = compose(
        task, model.vocab, clips=clips, history=utterance.history, opening=request.opening,
        user_text=request.prompt if task.hears else words(task, utterance),
        key=utterance.key or "request",
    )  # fmt: skip
    check_length(model.network.llm, len(row))
    preset = PRESETS[task.preset]
    text, speech = model.generation.text or preset, model.generation.speech or preset
    if request.greedy:
        text, speech = replace(text, greedy=True), replace(speech, greedy=True)
    answer = Answer(
        _decoded(model, request), model.vocab,
        text, _rules(model, request), _limits(request, seconds),
        torch.Generator(model.network.device).manual_seed(seed), speech,
    )  # fmt: skip
    is_given = request.recognition is not None and task.understands
    if is_given or (model.talker is not None and not task.answers_text):
        answer.stopped_by = "end"       # its words are given: there is nothing for the LLM to do
    opening_ids = model.vocab.encode(request.opening) if request.opening else ()
    parser = _parser(model, request)
    state = RequestState(
        request, row, answer, parser, seconds, seed, timer, opening_ids, is_silent
    )
    said = request.recognition.words if request.recognition else words(task, utterance)
    by_rule = None
    if task.answers_text and not task.understands:
        by_rule = safety.answer(model.generation.safety, said, seed)
    return _given(model, state, by_rule.text, said, by_rule.style) if by_rule else state


def opening_row(model: LoadedModel, history: Sequence[Turn], task: Task) -> Row:
    """What a dialogue's prompt begins with: all up to the sound of the user's next turn."""
    history = read_again(model, history)
    clips, _, _ = _clips(model, task, history)
    if model.network.settings.ctc is not None:
        clips = [_spelt(model, one)[1] for one in clips if isinstance(one, Tensor)]
    sound = torch.zeros(1, model.network.settings.encoder.mels)     # in the place of the next one
    row = compose(task, model.vocab, clips=[*clips, sound], history=history)
    end = row.spans[-1].start
    return replace(
        row, ids=row.ids[:end], trained=row.trained[:end], clips=row.clips[:-1],
        spans=row.spans[:-1],
    )  # fmt: skip


def read_again(model: LoadedModel, history: Sequence[Turn]) -> tuple[Turn, ...]:
    """Earlier turns as the LLM learnt to read them.

    Where a talker speaks, it knows no speech codes; what it was given as words stays words.
    """
    if model.talker is not None:
        history = [replace(turn, reply_speech=(), speech_starts=()) for turn in history]
    if model.network.settings.ctc is not None:
        history = [replace(turn, audio=None) if turn.text else turn for turn in history]
    return tuple(history)


def nothing_heard(model: LoadedModel, state: RequestState) -> RequestState:
    """The same request of a clip without words: it is answered that nothing was heard.

    A task that speaks reads that sentence out; an understanding one has nothing to tell.
    """
    request = state.request
    LOG.warning("the clip holds no words, so nothing is heard")
    text = "" if request.task.understands else NOTHING_HEARD[model.generation.template.name]
    heard = "" if request.task.transcript or not request.task.understands else None
    return _given(model, state, text, heard)


def _given(
    model: LoadedModel, state: RequestState, text: str, heard: str | None, style: str | None = None
) -> RequestState:
    """The same request with its answer known: a task that speaks reads it out."""
    request = state.request
    spoken = Request(
        task_for("tts"), (), Utterance("", "tts", Turn(reply_text=text)), None, None, None,
        request.speaks, request.greedy,
    )  # fmt: skip
    parser = reply.GivenText(text, heard if request.task.hears else None, style)
    if request.speaks:
        made = prepare(model, spoken, state.seed, state.timer)
        return replace(state, row=made.row, answer=made.answer, parser=parser, opening=())
    state.answer.stopped_by = "end"
    return replace(state, parser=parser, opening=())


def _decoded(model: LoadedModel, request: Request) -> Task:
    """The task as the LLM answers it: one that must not speak, or leaves it to a talker, ends with
    its text; interleaved without a talker, both go on together."""
    task = request.task
    if model.talker is not None:
        return replace(task, speaks=False, interleaved=False)
    return replace(task, speaks=task.speaks and (request.speaks or task.interleaved))


def _parser(model: LoadedModel, request: Request) -> reply.ReplyParser:
    if not request.task.answers_text:
        return reply.GivenText(words(request.task, request.utterance))
    if request.task.understands:
        return reply.UnderstandingParser(request.task, request.fields)
    if request.recognition is None:
        return reply.DialogueParser(model.generation.template)
    known = request.recognition
    labels = {**DEFAULT_LABELS, **known.labels} if known.words else known.labels
    return reply.DialogueParser(model.generation.template, known.words, Labels(**labels))


def _rules(model: LoadedModel, request: Request) -> tuple[Rule, ...]:
    """A label thought must name a real age, once: models may have learnt unknown ones. Where what
    was heard is given, a small model may fall back into that thought."""
    loop, vocab = model.generation.text_loop, model.vocab
    rules: tuple[Rule, ...] = () if loop is None else (loop,)
    first = model.generation.template.cues[0]
    if request.recognition is not None and not request.task.understands:
        thought_end = vocab.encode(THINK_END[1:-1]) if request.kind else ()
        rules = (*rules, EndsAtCue(vocab.encode(first.rstrip(": ")), thought_end, vocab.text_end))
    if request.kind != "label":
        return rules
    cue = first.lstrip(",")
    return (*rules, AllowedAfter(*model.vocab.choices_after(cue, AGES)))


def _limits(request: Request, seconds: float | None) -> Limits:
    """A transcript can be no longer than what can be said in the clip's time."""
    if not request.task.transcript or seconds is None:
        return LIMITS
    most = int(TOKENS_PER_S * seconds) + MORE_TOKENS
    return Limits(most, most)


def _known(model: LoadedModel, task: Task) -> Task:
    """The understanding task itself, or the full one where the model has no prompt for it."""
    full = task_for(UNDERSTAND)
    is_part = set(task.labels) < set(full.labels) and task.labels
    has_prompt = model.prompts.first(task.tag) or not model.prompts.first(full.tag)
    return full if is_part and not has_prompt else task


def _kind(model: LoadedModel, wanted: str | None) -> str:
    """The kind of thought to think: the one asked for, if the model can."""
    able = model.generation.thinking
    if able in ("both", "either"):
        return wanted or "label"
    if wanted not in (None, able):
        raise InputError(f"thinking {wanted}: this model thinks in the {able} way only")
    return able


def _clips(
    model: LoadedModel, task: Task, turns: Sequence[Turn]
) -> tuple[list[Clip], float | None, bool]:
    """The features of turns that have sound; the length of the last one's, and its silence."""
    clips: list[Clip] = []
    seconds, is_silent = None, False
    for turn in turns:
        if turn.audio is None:
            continue
        sound = audio.read(turn.audio, segment_s=turn.segment_s)
        name = turn.audio if isinstance(turn.audio, Path) else "audio"
        for finding in sound.findings:
            LOG.warning("%s: %s", name, finding)
        samples = sound.samples
        seconds, is_silent = len(samples) / audio.SAMPLE_RATE_HZ, _is_silent(samples)
        if seconds > LONGEST_TURN_S and not task.understands:
            raise InputError(
                f"{name}: {seconds:.0f} s of audio; task {task.name} takes up to "
                f"{LONGEST_TURN_S} s a turn: cut it, or use asr or understand (up to "
                f"{audio.LONGEST_S // 60} minutes)"
            )
        clips.append(audio.log_mel(samples, model.network.settings.encoder.mels, name))
    return (clips, seconds, is_silent) if task.hears else (clips, None, False)


def _recognized(
    model: LoadedModel, request: Request, clips: Sequence[Clip]
) -> tuple[Request, list[Clip], bool]:
    """What a model whose CTC spells hears, in the places of the clips; whether it is nothing.

    What the answer would write down of the user's words and labels is given to the model.
    """
    task, given = request.task, request.opening
    found = [_spelt(model, clip) for clip in clips if isinstance(clip, Tensor)]
    last = found[-1][0]
    if task.understands:
        given = last.answer(task)
    elif request.kind == "label":
        given = last.thought(model.generation.template)
    ids: list[Clip] = [own for _, own in found]
    return replace(request, opening=given, recognition=last), ids, last.is_nothing


def _spelt(model: LoadedModel, mel: Tensor) -> tuple[Recognition, tuple[int, ...]]:
    """What a clip says, and the ids that the LLM reads in its place. mel: (frames, mel)."""
    settings = model.network.settings.ctc
    assert settings is not None, "asked for what a model without a CTC of its own hears"
    hear = model.recognizer.recognize
    found = hear(mel) if model.memory is None else model.memory.recall(mel, hear)
    return found, found.ids(model.vocab, settings.pieces)


def _is_silent(samples: Tensor) -> bool:
    """Whether no stretch of (samples,) is loud enough to be heard. A constant offset is silence."""
    padding = -len(samples) % SILENCE_WINDOW_SAMPLES
    moving = functional.pad(samples - samples.mean(), (0, padding))
    windows = moving.view(-1, SILENCE_WINDOW_SAMPLES)
    return bool(windows.square().mean(1).max() < SILENCE_RMS**2)


def _labelled(name: str, labels: Sequence[str]) -> Task:
    """The understanding task that asks for these labels. Raises InputError for another task."""
    if name != UNDERSTAND:
        raise InputError(f"labels: task {name} takes none; use task understand")
    for label in labels:
        if label not in reply.LABEL_FIELDS:
            raise InputError(f"labels: {label!r} is not one of {', '.join(reply.LABEL_FIELDS)}")
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
    if not task.hears and not without_labels(words(task, utterance)):
        raise InputError(f"task {task.name} reads: give it a text that is not empty")
    for turn in (utterance.user, *utterance.history):
        for text in (turn.text, turn.reply_text):
            _check_letters(text)
    return utterance


def _check_letters(text: str | None) -> None:
    """Raise InputError for half a surrogate pair, as which bytes that are not UTF-8 come too."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text: character {error.start + 1} of {len(text or '')} is half of a pair or no UTF-8 "
            "(\\u{0:04x}); write the text in UTF-8".format(ord(error.object[error.start]))
        ) from error


def words(task: Task, utterance: Utterance) -> str:
    """What a task without sound reads: the words to speak, or the question."""
    if task.speaks:
        return clean(utterance.user.reply_text or "")
    return clean(utterance.prompt or utterance.user.text or "")
