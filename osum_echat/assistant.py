"""The assistant: an utterance goes in; its words, a thought, a reply and its speech come out."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from osum_echat import audio, loading, logs
from osum_echat import device as devices
from osum_echat.data.prepare import clean
from osum_echat.errors import InputError
from osum_echat.generation import decoder
from osum_echat.generation.rules import AllowedAfter, Rule
from osum_echat.generation.sampling import PRESETS
from osum_echat.loading import Parts
from osum_echat.records import Labels, Turn, Utterance
from osum_echat.sequence import Clip, compose
from osum_echat.tasks import Task, task_for, understanding_tag
from osum_echat.thinking import VALUES, opening, read_labels, split, without_labels

TINY = Path(__file__).resolve().parents[1] / "pretrained" / "tiny"
LABEL_FIELDS = ("emotion", "age", "gender", "event")
DEFAULT_TASK = "s2s_think"
LIMITS = decoder.Limits(text_tokens=1000, total_tokens=2000)
AGES = tuple(f"<{age}>" for age in sorted(VALUES["age"]))

LOG = logs.logger(__name__)


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


@dataclass(frozen=True, slots=True)
class Reply:
    """All that came of one utterance. wave: (samples,), None for a task that does not speak."""

    task: str
    heard: str | None           # the user's words, where the task's own output holds them
    thought: str | None
    labels: Labels
    text: str
    speech_tokens: tuple[int, ...]
    wave: Tensor | None = field(repr=False)
    sample_rate_hz: int | None
    audio_in_s: float | None
    timings: Timings

    @property
    def audio_out_s(self) -> float | None:
        if self.wave is None or not self.sample_rate_hz:
            return None
        return len(self.wave) / self.sample_rate_hz


@dataclass(frozen=True, slots=True)
class Request:
    """One call, all its options settled."""

    task: Task
    fields: tuple[str, ...]     # the labels wanted of an understanding task
    utterance: Utterance
    prompt: str | None
    kind: str | None            # of thought: label or natural
    opening: str | None
    speaks: bool


class EChat:
    """A loaded model with its voice. It keeps no conversation: an utterance brings its history."""

    def __init__(self, parts: Parts, seed: int) -> None:
        self.directory, self.network, self.vocab = parts.directory, parts.network, parts.vocab
        self.manner, self.voice, self.prompts = parts.manner, parts.voice, parts.prompts
        self.seed = seed
        self.load_s = 0.0

    @classmethod
    def load(
        cls, source: str | Path = TINY, device: str = "auto", seed: int = 0, speaks: bool = True,
        *, config: str | Path | None = None, tokenizer: str | Path | None = None,
        token2wav: str | Path | None = None, voice: str | Path | None = None, dtype: str = "auto",
        keep_lora: bool = False, share: "EChat | None" = None,
    ) -> "EChat":  # fmt: skip
        """Load a model.

        source: our directory, a published .pt, a DeepSpeed directory or hub:OWNER/NAME[/FILE];
        speaks: False leaves the voice out, for tasks that answer in text; config, tokenizer,
        token2wav: where settings, tokenizer and the model of the voice lie, None: beside the
        weights; voice: a recording or saved voice to speak in, None: the model's own; dtype: auto,
        bf16 or fp32; keep_lora: do not merge LoRA layers; share: a loaded assistant whose token2wav
        and equal weights this one uses too. Raises CheckpointError naming what does not fit.
        """
        start = time.perf_counter()
        asked = loading.Wanted(source, config, tokenizer, token2wav, voice, dtype, keep_lora)
        other = None if share is None else loading.Lent(share.network, share.voice)
        assistant = cls(loading.load(asked, devices.pick(device), speaks, other), seed)
        assistant.load_s = time.perf_counter() - start
        return assistant

    def reply(
        self, source: Utterance | Path | bytes | str, *, task: str | None = None,
        labels: Sequence[str] = (), prompt: str | None = None, thinking: str | None = None,
        greedy: bool = False, seed: int | None = None, hear: bool = False, speak: bool = True,
    ) -> Reply:  # fmt: skip
        """Answer one utterance.

        source: a whole Utterance (its task and history are used), a sound file as path or bytes, or
        the text of a task that reads text; labels: what `understand` is asked for (emotion, age,
        gender, event); hear: ask a second time for the words where the task does not tell them;
        speak: False stops after the text. Raises InputError for what does not fit together.
        """
        start = time.perf_counter()
        seed = self.seed if seed is None else seed
        request = self._request(source, task, labels, prompt, thinking, speak)
        clips, audio_in_s = self._clips(request)
        features_s = time.perf_counter() - start
        run = self._decode(request, clips, greedy, seed)
        ids = (*self._opening_ids(request), *run.text_ids)
        heard, thought, found, answer = self._read(request, self.vocab.decode(ids))
        wave = self._wave(request, run.speech_ids, seed)
        first_audio_s = time.perf_counter() - start if wave is not None else None
        if hear and heard is None and request.task.hears:
            again = replace(request.utterance, task="asr", history=())
            heard = self.reply(again, greedy=greedy, seed=seed).heard
        return Reply(
            task=request.task.tag, heard=heard, thought=thought, labels=found, text=answer,
            speech_tokens=tuple(run.speech_ids), wave=wave,
            sample_rate_hz=self.voice.sample_rate_hz if self.voice and wave is not None else None,
            audio_in_s=audio_in_s,
            timings=Timings(
                load_s=self.load_s,
                encode_s=features_s + run.timings.encode_s if request.task.hears else None,
                prefill_s=run.timings.prefill_s,
                first_text_s=_later(run.timings.first_text_s, features_s),
                first_speech_token_s=_later(run.timings.first_speech_s, features_s),
                first_audio_s=first_audio_s,
                total_s=time.perf_counter() - start,
            ),
        )  # fmt: skip

    def _decode(
        self, request: Request, clips: Sequence[Clip], greedy: bool, seed: int
    ) -> decoder.Generated:
        """Run the network on the request."""
        task = request.task
        user_text = request.prompt if task.hears else _words(task, request.utterance)
        row = compose(
            task, self.vocab, clips=clips, history=request.utterance.history,
            user_text=user_text, opening=request.opening, key=request.utterance.key or "request",
        )  # fmt: skip
        text = self.manner.text or PRESETS[task.name]
        speech = self.manner.speech or PRESETS[task.name]
        if greedy:
            text, speech = replace(text, greedy=True), replace(speech, greedy=True)
        # A task that must not speak now ends with its text.
        run = decoder.decode(
            self.network, row, self.vocab, replace(task, speaks=request.speaks), text,
            rules=self._rules(request), limits=LIMITS, speech_sampling=speech,
            generator=torch.Generator(self.network.device).manual_seed(seed),
        )  # fmt: skip
        if run.stopped_by == "limit":
            LOG.warning("task %s: no end within %s", task.name, LIMITS)
        return run

    def _rules(self, request: Request) -> tuple[Rule, ...]:
        """A label thought must name a real age, once: models may have learnt unknown ones."""
        if request.kind != "label":
            return ()
        cue = self.manner.template.cues[0].lstrip(",")
        return (AllowedAfter(*self.vocab.choices_after(cue, AGES)),)

    def _request(
        self, source: Utterance | Path | bytes | str, name: str | None, labels: Sequence[str],
        prompt: str | None, kind: str | None, speak: bool,
    ) -> Request:  # fmt: skip
        """Settle the options against the task and the model. Raises InputError."""
        name = name or (source.task if isinstance(source, Utterance) else DEFAULT_TASK)
        task = task_for(name)
        if task.name == "s2s" and isinstance(source, Utterance) and source.history:
            task = task_for("s2s_history")
        understands = task.name == "understand"
        if labels:
            task = _labelled(name, labels)
        if prompt is not None and not understands:
            raise InputError(f"prompt: task {name} takes none; use an understanding task")
        if kind is not None and not task.thinks:
            raise InputError(f"thinking: task {name} does not think; use s2s_think or s2t_think")
        if task.thinks:
            kind = self._kind(kind)
        if task.speaks and speak and self.voice is None:
            raise InputError(f"task {name} speaks, but the model was loaded with speaks=False")
        fields = task.labels
        if understands and prompt is None:
            task = self._known(task)
        return Request(
            task, fields, _utterance(source, task), kind=kind, speaks=task.speaks and speak,
            prompt=(prompt or self.prompts.first(task.tag)) if understands else None,
            opening=opening(kind, self.manner.template)
            if kind and self.manner.thinking == "both" else None,
        )  # fmt: skip

    def _known(self, task: Task) -> Task:
        """The understanding task itself, or the full one where the model has no prompt for it."""
        full = task_for("understand")
        is_part = set(task.labels) < set(full.labels) and task.labels
        has_prompt = self.prompts.first(task.tag) or not self.prompts.first(full.tag)
        return full if is_part and not has_prompt else task

    def _kind(self, wanted: str | None) -> str:
        """The kind of thought to think: the one asked for, if the model can."""
        able = self.manner.thinking
        if able in ("both", "either"):
            return wanted or "label"
        if wanted not in (None, able):
            raise InputError(f"thinking {wanted}: this model thinks in the {able} way only")
        return able

    def _clips(self, request: Request) -> tuple[list[Clip], float | None]:
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
            clips.append(audio.log_mel(samples, self.network.settings.encoder.mels))
        return clips, seconds if request.task.hears else None

    def _opening_ids(self, request: Request) -> tuple[int, ...]:
        return self.vocab.encode(request.opening) if request.opening else ()

    def _read(self, request: Request, text: str) -> tuple[str | None, str | None, Labels, str]:
        """What was heard, the thought, the labels and the answer in the generated text."""
        task = request.task
        if not task.answers_text:
            return None, None, Labels(), without_labels(_words(task, request.utterance))
        if task.name == "understand":
            heard = without_labels(text) if task.transcript else None
            found = asdict(read_labels(text, task.labels))
            wanted = Labels(**{name: found[name] for name in request.fields})
            return heard, None, wanted, text.strip()
        parts = split(text, self.manner.template)
        return parts.heard, parts.thought, parts.labels, parts.answer

    def _wave(self, request: Request, codes: Sequence[int], seed: int) -> Tensor | None:
        """The codes as sound: (samples,) on the CPU; None without speech."""
        if not request.speaks or self.voice is None:
            return None
        if not codes:
            LOG.warning("task %s: the model gave no speech", request.task.name)
            return None
        return self.voice(list(codes), seed=seed).float().cpu()


def _later(seconds: float | None, by: float) -> float | None:
    return None if seconds is None else seconds + by


def _labelled(name: str, labels: Sequence[str]) -> Task:
    """The understanding task that asks for these labels. Raises InputError for another task."""
    if name != "understand":
        raise InputError(f"labels: task {name} takes none; use task understand")
    for label in labels:
        if label not in LABEL_FIELDS:
            raise InputError(f"labels: {label!r} is not one of {', '.join(LABEL_FIELDS)}")
    return task_for(understanding_tag(tuple(labels)))


def _utterance(source: Utterance | Path | bytes | str, task: Task) -> Utterance:
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
    if not task.hears and not _words(task, utterance).strip():
        raise InputError(f"task {task.name} reads: give it a text that is not empty")
    return utterance


def _words(task: Task, utterance: Utterance) -> str:
    """What a task without sound reads: the words to speak, or the question."""
    if task.speaks:
        return clean(utterance.user.reply_text or "")
    return clean(utterance.prompt or utterance.user.text or "")
