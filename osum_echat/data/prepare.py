"""From an utterance to its row of tokens: what the model shall answer, its length, then its sound.

A draft knows how many tokens and frames a row will have from text and audio headers alone, so that
rows are laid out before anything is decoded. Source of the rules on targets: OSUM-EChat's data
pipeline (label spelling, spaces, label-only variants, reply tags, unknown labels). Chance comes
from the `rng` handed in, so that a visit can be repeated.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from osum_echat.data.clips import ClipReader, ClipSettings, PendingClip
from osum_echat.data.sources import Dropped, Noted
from osum_echat.errors import DataError, InputError
from osum_echat.records import Labels, Turn, Utterance, canonical_label
from osum_echat.sequence import Clip, Sequence, compose
from osum_echat.settings import check_numbers, check_word
from osum_echat.tasks import Prompts, Task, fix_labels, task_for
from osum_echat.thinking import (
    ANSWER_START,
    CHINESE,
    DEFAULT_LABELS,
    LABEL,
    LEADING_TAG,
    VALUES,
    LabelTemplate,
    as_words,
    clean,
    label_thought,
    natural_thought,
    opening,
    template_named,
    voice_tags,
    without_labels,
)
from osum_echat.vocab import Pieces, Vocab

OTHER_ASSISTANTS = (
    "MOSS Assistant", "MOSS助手", "QWEN", "Qwen助手", "ChatGPT", "chatgpt", "ChatBot", "chatbot",
    "Chat Bot", "chat bot", "AI Agent", "AI agent", "virtual assistant", "VirtualAssistant李娜",
    "小智机器人", "小智助手", "小智AI助手", "小智Bot", "Assistant小智", "AI小智", "小红小助手",
    "小刚AI", "晓明助手", "小明助手", "MOSS小助手", "ChatBot小明", "阿强Bot", "阿丽小助手",
    "王磊AI助手", "李娜AI", "张伟助手", "赵敏Bot", "刘洋AI小助手", "陈晨智能助手", "大型语言模型",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrepareSettings(ClipSettings):
    """How records become rows; the published values are the defaults."""

    thinking: str = "label"  # label | natural | both (a draw at each visit)
    template: str = "chinese"  # words of a label thought: chinese | english
    prompts: str | None = "conf/prompt_config.yaml"  # prompts of understanding tasks; null = none
    prompt_language: str = "all"  # all | english | chinese
    labels_only: float = 0.5  # chance that a task of words and labels asks for the labels alone
    audio_as_text: float = 0.0  # share of rows with words and labels in place of sound: a small
    # LLM's pre-training, and what keeps it reading the adapter's steps later
    audio_as_text_noise: float = 0.1  # chance of a stand-in token to be lost or mistaken
    audio_as_text_gaps: float = 1.0  # how long stand-ins pause, against the adapter's steps
    audio_as_text_merges: int = 0  # stand-ins spelt by the tokenizer's first merges, labels as
    # words, as an ear of pieces writes; 0: by the whole tokenizer
    speech_answers: bool = True  # false: spoken answers are cut off after their text
    speech_per_text: float = 0.8  # least speech tokens for a text token of the answer; 0 = any
    min_frames: int = 20  # of the user's own audio, 10 ms each
    max_frames: int = 20_000
    max_tokens: int = 2000  # longer rows are dropped
    other_names: tuple[str, ...] = OTHER_ASSISTANTS  # replies that name one of these are dropped
    ctc_targets: bool = False  # rows tell labels and words of their clips, for engine.ctc_weight
    RENAMED: ClassVar[dict[str, str]] = {"name_heard": "ctc_targets"}

    def __post_init__(self) -> None:
        check_word("prepare.thinking", self.thinking, ("label", "natural", "both"))
        template_named(self.template)
        check_numbers(self, "prepare", "labels_only audio_as_text audio_as_text_noise", 0, 1)
        names = "audio_as_text_gaps audio_as_text_merges speech_per_text min_frames"
        check_numbers(self, "prepare", f"{names} time_masks band_masks cache_mb", 0)


ALL_UNKNOWN_CHANCE = 0.85  # missing labels are all unknown, or else all defaults
TRANSCRIPT_AND_REPLY = "<TRANSCRIBE> <S2TCHAT>"
NEUTRAL_STYLE = "中立"
REPLY_STYLES = frozenset("愉悦 抱歉 开心 愤怒 惊讶 厌恶 悲伤 害怕 哭腔 安慰鼓励 中立".split())


@dataclass(frozen=True, slots=True)
class Target:
    """What the model shall answer: the task as drawn, the whole text, its forced first words."""

    task: Task
    text: str
    opening: str | None = None


def make_target(
    utterance: Utterance, settings: PrepareSettings, template: LabelTemplate, rng: random.Random
) -> Target | Dropped:
    """The task and answer text of an utterance, as drawn at this visit. Raises InputError."""
    text = utterance.user.reply_text or ""
    named = next((name for name in settings.other_names if name in text), None)
    if named is not None:
        return Dropped("names another assistant", f"{utterance.key}: {named!r}")
    task, text = task_for(utterance.task), fix_labels(text.replace("\n", " "))
    if task.name == "s2s" and utterance.history:
        task = task_for("s2s_history")
    if task.tag == TRANSCRIPT_AND_REPLY and rng.random() < settings.labels_only:
        parts = text.split(ANSWER_START)
        if len(parts) != 2:
            return Dropped("no single reply mark", utterance.key)
        task, text = task_for("s2t"), parts[1]
    if task.understands:
        return _understanding(utterance, task, text, settings, rng)
    kind = settings.thinking
    if kind == "both":
        both = utterance.thought is not None and utterance.user.text is not None
        only = "label" if utterance.thought is None else "natural"
        kind = rng.choice(("label", "natural")) if both else only
    if task.answers_text:
        text = _reply(text, kind, template, task)
    if not task.thinks:
        return Target(task, clean(text))
    return _with_thought(utterance, task, clean(text), kind, template, settings, rng)


def unknown_labels(utterance: Utterance, target: Target) -> tuple[Noted, ...]:
    """The labels of a record, and those it is to answer with, that no model knows."""
    named = [(field, getattr(utterance.labels, field)) for field in VALUES]
    named += zip(target.task.labels, LABEL.findall(target.text), strict=False)
    names = ((field, canonical_label(value)) for field, value in named if field in VALUES)
    unknown = {(field, name) for field, name in names if name and name not in VALUES[field]}
    return tuple(
        Noted(f"unknown label of {field}",
              f"{utterance.key}: {name!r}, not one of {', '.join(sorted(VALUES[field]))}")
        for field, name in sorted(unknown)
    )  # fmt: skip


def _understanding(
    utterance: Utterance, task: Task, text: str, settings: PrepareSettings, rng: random.Random
) -> Target | Dropped:
    """Transcript and labels as listed, or at random the labels alone."""
    if task.transcript and task.labels and rng.random() < settings.labels_only:
        tags = LABEL.findall(text)
        if len(tags) < len(task.labels):
            return Dropped("fewer labels than asked for", utterance.key)
        task = task_for(task.tag.removeprefix("<TRANSCRIBE>"))
        text = "".join(f"<{one}>" for one in tags[: len(task.labels)])
    text = clean(text)
    if task.transcript and not task.labels and task.tag == "<TRANSCRIBE>":
        text = text.lower()
    return Target(task, text) if text else Dropped("empty text", utterance.key)


def _reply(text: str, kind: str, template: LabelTemplate, task: Task) -> str:
    """A reply with the leading style tag that the published thinking models learnt, or without.

    Chinese label thinking: always one of the known tags in dialogue; natural: none. English and
    all other tasks: as it is.
    """
    if template is not CHINESE:
        return text
    tag = LEADING_TAG.match(text)
    words = text[tag.end() :] if tag else text
    if kind == "natural":
        return words
    if not task.is_styled:
        return text
    style = tag[1] if tag and tag[1] in REPLY_STYLES else NEUTRAL_STYLE
    return f"<{style}>{words}"


def _with_thought(
    utterance: Utterance, task: Task, text: str, kind: str, template: LabelTemplate,
    settings: PrepareSettings, rng: random.Random,
) -> Target | Dropped:  # fmt: skip
    """The answer behind its thought. A model of both kinds is taught to go on from an opening."""
    forced = opening(kind, template) if settings.thinking == "both" else None
    if kind == "natural":
        if utterance.thought is None:
            return Dropped("no thought", utterance.key)
        return Target(task, natural_thought(clean(utterance.thought)) + text, forced)
    if not utterance.user.text:
        return Dropped("no words of the user for the label thought", utterance.key)
    labels = _filled(utterance.labels, rng)
    tag = LEADING_TAG.match(text)
    if tag:
        labels = replace(labels, style=tag[1])
    return Target(task, label_thought(template, clean(utterance.user.text), labels) + text, forced)


def _filled(labels: Labels, rng: random.Random) -> Labels:
    """Missing labels: mostly all left unknown (no loss on them), else all at their defaults."""
    missing = {name: value for name, value in DEFAULT_LABELS.items() if not getattr(labels, name)}
    if not missing or rng.random() < ALL_UNKNOWN_CHANCE:
        return labels
    return replace(labels, **missing)


# Blank steps after a stand-in for a piece, from and to, and how often: speech pauses now and then.
STAND_IN_GAPS, STAND_IN_GAP_WEIGHTS = ((0, 2), (2, 5), (6, 20)), (6, 3, 1)
SILENT_STEPS = 4  # blanks that stand in for a clip in which nothing was said


@dataclass(frozen=True, slots=True)
class Draft:
    """A row whose clips are still to be decoded: `row` holds shapes in their places."""

    row: Sequence
    clips: tuple[PendingClip, ...]
    compose: Callable[[list[Clip]], Sequence]
    notes: tuple[Noted, ...] = ()
    source: str = ""  # the list that it is from

    def __len__(self) -> int:
        return len(self.row)

    @property
    def frames(self) -> list[int]:
        """Frames of each clip."""
        return [len(clip) for clip in self.row.clips]


class Preparer:
    """Utterances to sequences, for one vocabulary and one size of features."""

    def __init__(
        self, settings: PrepareSettings, vocab: Vocab, mels: int, prompts: Prompts | None = None
    ) -> None:
        self.settings = settings
        self.vocab = vocab
        self.template = template_named(settings.template)
        self.clips = ClipReader(settings, mels)
        if prompts is None and settings.prompts is not None:
            prompts = Prompts.from_file(Path(settings.prompts), settings.prompt_language)
        self.prompts = prompts or Prompts({})
        merges = settings.audio_as_text_merges
        self.pieces = Pieces(vocab.tokenizer, merges) if merges else None

    def __call__(self, utterance: Utterance, rng: random.Random) -> Sequence | Dropped:
        """The row of an utterance at one visit, or why it has none."""
        draft = self.draft(utterance, rng)
        return draft if isinstance(draft, Dropped) else self.finish(draft)

    def draft(
        self, utterance: Utterance, rng: random.Random, source: str = ""
    ) -> Draft | Dropped:
        """The row without its sound, or why there is none. All chance is drawn here.

        source: the name of its list.
        """
        try:
            target = make_target(utterance, self.settings, self.template, rng)
            if isinstance(target, Dropped):
                return target
            task = target.task
            if task.speaks and task.answers_text and not self.settings.speech_answers:
                task = replace(task, speaks=False, joint=False, interleaved=False)
            user_text = self._user_text(utterance, target, rng)
            fault = self._fault(utterance, task, target, user_text)
            if fault is not None:
                return fault
            clips = self._clips(utterance, task, rng)
        except InputError as error:
            return Dropped("task cannot be used", f"{utterance.key}: {error}")
        if isinstance(clips, Dropped):
            return clips

        def composed(clips: list[Clip]) -> Sequence:
            row = compose(
                task, self.vocab, clips=clips,
                history=utterance.history if task.hears or task.interleaved else (),
                user_text=user_text, answer_text=target.text if task.answers_text else None,
                answer_speech=utterance.user.reply_speech if task.speaks else None,
                speech_starts=utterance.user.speech_starts, opening=target.opening,
                key=utterance.key,
            )  # fmt: skip
            return replace(row, ctc_targets=self._ctc_targets(utterance)) if row.clips else row

        try:
            row = composed([
                torch.empty(clip.frames, self.clips.mels, device="meta")
                if isinstance(clip, PendingClip) else clip for clip in clips
            ])  # fmt: skip
        except DataError as error:
            return Dropped("parts do not fit the task", str(error))
        pending = tuple(clip for clip in clips if isinstance(clip, PendingClip))
        notes = (*unknown_labels(utterance, target), *_too_short_for_ctc(row))
        return self._too_long(row) or Draft(row, pending, composed, notes, source)

    def finish(self, draft: Draft, notes: list[Noted] | None = None) -> Sequence | Dropped:
        """The row with its sound decoded, or what is wrong with that; `notes` are added to."""
        if not draft.clips:
            return draft.row
        clips: list[Tensor] = []
        for clip in draft.clips:
            try:
                features, findings = self.clips.read(clip)
            except InputError as error:
                return _broken_audio(draft.row.key, clip.turn, error)
            clips.append(features)
            if notes is not None:
                notes += [Noted(one.kind, f"{draft.row.key}: {one.detail}") for one in findings]
        if [len(clip) for clip in clips] == draft.frames:
            return replace(draft.row, clips=clips)
        row = draft.compose([*clips])  # a header that does not know the exact length, as of mp3
        return self._too_long(row) or row

    def _too_long(self, row: Sequence) -> Dropped | None:
        if len(row) <= self.settings.max_tokens:
            return None
        return Dropped("too long", f"{row.key}: {len(row)} tokens")

    def _ctc_targets(self, utterance: Utterance) -> list[tuple[int, ...]]:
        """The text ids that each clip says, history first; none where that is not asked for."""
        if not self.settings.ctc_targets:
            return []
        texts = [turn.text or "" for turn in utterance.history if turn.audio is not None]
        return [self.vocab.encode(text) for text in (*texts, _labels_and_words(utterance))]

    def _fault(
        self, utterance: Utterance, task: Task, target: Target, user_text: str | None
    ) -> Dropped | None:
        """What makes an utterance useless before its sound is looked at."""
        if task.name == "t2t" and not user_text:
            return Dropped("no question", utterance.key)
        if not task.speaks:
            return None
        if not self.settings.speech_answers:
            return Dropped("speech answers are off", utterance.key)
        codes = len(utterance.user.reply_speech)
        if not codes:
            advice = "make them by common_utils/extract_speech_tokens.py"
            return Dropped("no speech tokens", f"{utterance.key}; {advice}")
        words = len(self.vocab.encode(target.text)) + 1
        if self.settings.speech_per_text * words >= codes:
            return Dropped("speech too short for its text", utterance.key)
        return None

    def _user_text(self, utterance: Utterance, target: Target, rng: random.Random) -> str | None:
        """The prompt, question or words to speak; None for tasks without."""
        task = target.task
        if not task.user_text:
            return None
        if task.hears:
            return utterance.prompt or self.prompts.draw(task.tag, rng)
        if not task.speaks:
            return clean(utterance.prompt or utterance.user.text or "")
        return target.text

    def _clips(
        self, utterance: Utterance, task: Task, rng: random.Random
    ) -> list[PendingClip | tuple[int, ...]] | Dropped:
        """What is heard, history first: sound to decode, or text standing in for it."""
        if not task.hears:
            return []
        share = self.settings.audio_as_text
        if share and rng.random() < share:
            return self._stand_ins(utterance, rng)
        if utterance.user.audio is None:
            return Dropped("no audio", utterance.key)
        clips: list[PendingClip | tuple[int, ...]] = []
        for turn in (*utterance.history, utterance.user):
            if turn.audio is None:
                continue
            try:
                clip = self.clips.draft(turn, rng)
            except InputError as error:
                return _broken_audio(utterance.key, turn, error)
            clips.append(clip)
        if not self.settings.min_frames <= clip.frames <= self.settings.max_frames:
            detail = f"{utterance.key}: {clip.frames} frames"
            return Dropped("audio too short or too long", detail)
        return clips

    def _stand_ins(
        self, utterance: Utterance, rng: random.Random
    ) -> list[PendingClip | tuple[int, ...]] | Dropped:
        """Text ids in the places of clips."""
        clips: list[PendingClip | tuple[int, ...]] = []
        for turn in utterance.history:
            if turn.audio is not None:
                if not turn.text:
                    return Dropped("no words to stand in for audio", utterance.key)
                clips.append(self._stretch(turn.text, rng))
        clips.append(self._stretch(_labels_and_words(utterance), rng))
        return clips

    def _stretch(self, text: str, rng: random.Random) -> tuple[int, ...]:
        """As the adapter's steps read under the CTC loss: each id a step or two, then blanks.

        The mark before a clip is the blank. Some ids are lost, some mistaken for another.
        """
        ids = self.pieces.encode(as_words(text)) if self.pieces else self.vocab.encode(text)
        wrong = self.pieces.ids if self.pieces else range(self.vocab.text_rows)
        most = 2 if self.settings.audio_as_text_gaps else 1
        noise, blank = self.settings.audio_as_text_noise, self.vocab.joint(self.vocab.audio_begin)
        steps: list[int] = []
        for number in ids:
            chance = rng.random()
            if chance < noise / 2:
                continue
            heard = rng.choice(wrong) if chance < noise else number
            gap = rng.choices(STAND_IN_GAPS, weights=STAND_IN_GAP_WEIGHTS)[0]
            pause = round(self.settings.audio_as_text_gaps * rng.randint(*gap))
            steps += [heard] * rng.randint(1, most) + [blank] * pause
        return tuple(steps or ids or (blank,) * SILENT_STEPS)


def _too_short_for_ctc(row: Sequence) -> Iterator[Noted]:
    """Clips with too few steps for what the CTC shall read in them: it learns nothing there."""
    for span, ids in zip(row.spans, row.ctc_targets, strict=False):  # without targets: none
        needed = len(ids) + sum(one == other for one, other in pairwise(ids))
        if span.length < needed:
            yield Noted("clip too short for the CTC",
                        f"{row.key}: {span.length} steps for {needed}")  # fmt: skip


def _labels_and_words(utterance: Utterance) -> str:
    """What the user's clip holds: the labels of the voice, then the words."""
    words = utterance.user.text or ""
    if not words and task_for(utterance.task).transcript:
        words = without_labels(utterance.user.reply_text or "")
    return voice_tags(asdict(utterance.labels)) + words


def _broken_audio(key: str, turn: Turn, error: InputError) -> Dropped:
    file = str(turn.audio) if isinstance(turn.audio, Path) else f"audio of {key}"
    return Dropped("audio cannot be used", f"{key}: {error}", file)
