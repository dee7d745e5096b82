"""What the model shall answer: the target text of an utterance, its task as drawn at a visit.

Source of the rules: OSUM-EChat's data pipeline (label spelling, spaces, label-only variants, reply
tags, unknown labels). Chance comes from the `rng` handed in, so that a visit can be repeated.
"""

import random
import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

from osum_echat.data.augment import AugmentSettings
from osum_echat.data.sources import Dropped, Noted
from osum_echat.errors import ConfigError
from osum_echat.records import Labels, Utterance, canonical_label
from osum_echat.tasks import Task, fix_labels, task_for
from osum_echat.thinking import (
    CHINESE,
    VALUES,
    LabelTemplate,
    label_thought,
    natural_thought,
    opening,
    template_named,
)

THINKING = ("label", "natural", "both")
OTHER_ASSISTANTS = (
    "MOSS Assistant", "MOSS助手", "QWEN", "Qwen助手", "ChatGPT", "chatgpt", "ChatBot", "chatbot",
    "Chat Bot", "chat bot", "AI Agent", "AI agent", "virtual assistant", "VirtualAssistant李娜",
    "小智机器人", "小智助手", "小智AI助手", "小智Bot", "Assistant小智", "AI小智", "小红小助手",
    "小刚AI", "晓明助手", "小明助手", "MOSS小助手", "ChatBot小明", "阿强Bot", "阿丽小助手",
    "王磊AI助手", "李娜AI", "张伟助手", "赵敏Bot", "刘洋AI小助手", "陈晨智能助手", "大型语言模型",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrepareSettings:
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
    time_masks: int = 0  # stretches of a clip set to zero, of up to 50 frames (upstream: 2)
    band_masks: int = 0  # bands of a clip set to zero, of up to 10 mel bins (upstream: 2)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    other_names: tuple[str, ...] = OTHER_ASSISTANTS  # replies that name one of these are dropped
    ctc_targets: bool = False  # rows tell labels and words of their clips, for engine.ctc_weight
    cache_mb: int = 0  # features kept in memory in half precision; 0 = none, full precision
    RENAMED: ClassVar[dict[str, str]] = {"name_heard": "ctc_targets"}

    def __post_init__(self) -> None:
        if self.thinking not in THINKING:
            known = ", ".join(THINKING)
            raise ConfigError(f"prepare.thinking: {self.thinking!r} is not one of {known}")
        template_named(self.template)
        for name in ("labels_only", "audio_as_text", "audio_as_text_noise"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"prepare.{name}: {getattr(self, name)}, need 0 to 1")
        if self.audio_as_text_gaps < 0:
            raise ConfigError(f"prepare.audio_as_text_gaps: {self.audio_as_text_gaps}, need 0 up")


ALL_UNKNOWN_CHANCE = 0.85  # missing labels are all unknown, or else all defaults
DEFAULT_LABELS = {"age": "ADULT", "gender": "MALE", "emotion": "NEUTRAL", "event": "OTHER"}
ANSWER_START = "<开始回答>"  # parts transcript and reply in `<TRANSCRIBE> <S2TCHAT>`
TRANSCRIPT_AND_REPLY = "<TRANSCRIBE> <S2TCHAT>"
NEUTRAL_STYLE = "中立"
REPLY_STYLES = frozenset("愉悦 抱歉 开心 愤怒 惊讶 厌恶 悲伤 害怕 哭腔 安慰鼓励 中立".split())
_TAG = re.compile(r"<[^<>]+>")
_LEADING_TAG = re.compile(r"^\s*<([^<>]+)>\s*")
_CJK_SPACES = re.compile(r"\s+(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])\s+")
_BRACKET_SPACES = re.compile(r"\s+(?=[<>])|(?<=[<>])\s+")


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
        kind = rng.choice(("label", "natural")) if both else _only_kind(utterance)
    if task.answers_text:
        text = _reply(text, kind, template, task)
    if not task.thinks:
        return Target(task, clean(text))
    return _with_thought(utterance, task, clean(text), kind, template, settings, rng)


def unknown_labels(utterance: Utterance, target: Target) -> tuple[Noted, ...]:
    """The labels of a record, and those it is to answer with, that no model knows."""
    named = [(field, getattr(utterance.labels, field)) for field in VALUES]
    named += zip(target.task.labels, _TAG.findall(target.text), strict=False)
    names = ((field, canonical_label(value)) for field, value in named if field in VALUES)
    unknown = {(field, name) for field, name in names if name and name not in VALUES[field]}
    return tuple(
        Noted(f"unknown label of {field}",
              f"{utterance.key}: {name!r}, not one of {', '.join(sorted(VALUES[field]))}")
        for field, name in sorted(unknown)
    )  # fmt: skip


def _only_kind(utterance: Utterance) -> str:
    return "label" if utterance.thought is None else "natural"


def _understanding(
    utterance: Utterance, task: Task, text: str, settings: PrepareSettings, rng: random.Random
) -> Target | Dropped:
    """Transcript and labels as listed, or at random the labels alone."""
    if task.transcript and task.labels and rng.random() < settings.labels_only:
        tags = _TAG.findall(text)
        if len(tags) < len(task.labels):
            return Dropped("fewer labels than asked for", utterance.key)
        task = task_for(task.tag.removeprefix("<TRANSCRIBE>"))
        text = "".join(tags[: len(task.labels)])
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
    tag = _LEADING_TAG.match(text)
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
    tag = _LEADING_TAG.match(text)
    if tag:
        labels = replace(labels, style=tag[1])
    return Target(task, label_thought(template, clean(utterance.user.text), labels) + text, forced)


def _filled(labels: Labels, rng: random.Random) -> Labels:
    """Missing labels: mostly all left unknown (no loss on them), else all at their defaults."""
    missing = {name: value for name, value in DEFAULT_LABELS.items() if not getattr(labels, name)}
    if not missing or rng.random() < ALL_UNKNOWN_CHANCE:
        return labels
    return replace(labels, **missing)


def clean(text: str) -> str:
    """One line, no spaces around Chinese characters or angle brackets.

    A bracket that opens a tag keeps no space before it; `<think end>` keeps the one inside.
    """
    text = _CJK_SPACES.sub("", text.replace("\n", " "))
    return _BRACKET_SPACES.sub("", text).strip()
